#include "../cuda/random.h"
#include "cuda_binding.h"

namespace fastgen::cuda {
namespace {

Draw draw_for(const Tensor& out, int64_t seed, const Tensor& sample_ids, int64_t step, int64_t stream) {
  require(out.dim() == 2 && out.is_contiguous(), "bad output");
  require(sample_ids.scalar_type() == ScalarType::Long && sample_ids.is_contiguous() &&
              sample_ids.numel() == out.size(0) && sample_ids.device() == out.device(),
          "bad sample_ids");
  return {static_cast<uint64_t>(seed),
          data<const int64_t>(sample_ids),
          static_cast<uint32_t>(step),
          static_cast<uint32_t>(stream),
          out.size(0),
          out.size(1)};
}

template <class T, int (*LAUNCH)(const Draw&, T*, cudaStream_t)>
void fill(Tensor out, int64_t seed, Tensor sample_ids, int64_t step, int64_t stream) {
  require(out.element_size() == sizeof(T), "bad output");
  const OnDeviceOf device(out);
  check_launch(LAUNCH(draw_for(out, seed, sample_ids, step, stream), data<T>(out), device.queue()));
}

// p is a float64 tensor expanded to out's shape; its strides may be zero.
void bernoulli_out(Tensor out, Tensor p, int64_t seed, Tensor sample_ids, int64_t step, int64_t stream) {
  require(out.scalar_type() == ScalarType::Bool, "bad output");
  require(p.scalar_type() == ScalarType::Double && p.dim() == 2 && p.size(0) == out.size(0) &&
              p.size(1) == out.size(1) && p.device() == out.device(),
          "bad p");
  const OnDeviceOf device(out);
  check_launch(bernoulli(draw_for(out, seed, sample_ids, step, stream), data<const double>(p), p.stride(0),
                         p.stride(1), data<bool>(out), device.queue()));
}

}  // namespace
}  // namespace fastgen::cuda

FASTGEN_DEFINE_OPS(FASTGEN_CUDA_LIBRARY, m) {
  m.def("bits(Tensor(a!) out, int seed, Tensor sample_ids, int step, int stream) -> ()");
  m.def("uniform(Tensor(a!) out, int seed, Tensor sample_ids, int step, int stream) -> ()");
  m.def("normal(Tensor(a!) out, int seed, Tensor sample_ids, int step, int stream) -> ()");
  m.def("bernoulli(Tensor(a!) out, Tensor p, int seed, Tensor sample_ids, int step, int stream) -> ()");
}

FASTGEN_IMPLEMENT_OPS(FASTGEN_CUDA_LIBRARY, FASTGEN_CUDA_DEVICE, m) {
  using namespace fastgen::cuda;
  m.impl("bits", TORCH_BOX((&fill<uint32_t, bits>)));
  m.impl("uniform", TORCH_BOX((&fill<float, uniform>)));
  m.impl("normal", TORCH_BOX((&fill<float, normal>)));
  m.impl("bernoulli", TORCH_BOX(&bernoulli_out));
}
