#include "../cpu/random.h"

#include <algorithm>

#include "native.h"

namespace fastgen {
namespace {

constexpr int64_t kGrainBlocks = 1 << 13;  // 32768 numbers: some 20 us of work for a thread
constexpr int64_t kCaches = 1 << 25;       // bytes; what is larger will not be in a cache when it is read

// Cuts rows x blocks into equal shares, and each share into pieces of one row: piece(row, first block,
// blocks).
template <class Piece>
void for_each_piece(int64_t rows, int64_t blocks, const Piece& piece) {
  parallel_for(0, rows * blocks, kGrainBlocks, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t row = begin / blocks, first = begin % blocks;
      const int64_t count = std::min(blocks - first, end - begin);
      piece(row, first, count);
      begin += count;
    }
  });
}

template <class T, class Kernel>
void fill(Tensor out, int64_t seed, const Tensor& sample_ids, int64_t step, int64_t stream, Kernel kernel) {
  require(out.dim() == 2 && out.is_contiguous() && out.element_size() == sizeof(T), "bad output");
  require(sample_ids.scalar_type() == ScalarType::Long && sample_ids.is_contiguous() &&
              sample_ids.numel() == out.size(0),
          "bad sample_ids");
  const int64_t n = out.size(1);
  if (out.numel() == 0) return;
  const int64_t* ids = data<int64_t>(sample_ids);
  T* first_row = data<T>(out);
  prefer_huge_pages(first_row, out.numel() * sizeof(T));
  const bool past_caches = out.numel() * static_cast<int64_t>(sizeof(T)) > kCaches;
  for_each_piece(out.size(0), (n + 3) / 4, [&](int64_t row, int64_t block, int64_t blocks) {
    const Stream draws(static_cast<uint64_t>(seed), ids[row], static_cast<uint32_t>(step),
                       static_cast<uint32_t>(stream));
    kernel(draws, block, std::min(4 * blocks, n - 4 * block), past_caches, first_row + row * n + 4 * block);
  });
}

void bits_out(Tensor out, int64_t seed, Tensor sample_ids, int64_t step, int64_t stream) {
  fill<uint32_t>(out, seed, sample_ids, step, stream, FASTGEN_KERNEL(bits));
}

void uniform_out(Tensor out, int64_t seed, Tensor sample_ids, int64_t step, int64_t stream) {
  fill<float>(out, seed, sample_ids, step, stream, FASTGEN_KERNEL(uniform));
}

void normal_out(Tensor out, int64_t seed, Tensor sample_ids, int64_t step, int64_t stream) {
  fill<float>(out, seed, sample_ids, step, stream, FASTGEN_KERNEL(normal));
}

// p is a float64 tensor expanded to out's shape; its strides may be zero.
void bernoulli_out(Tensor out, Tensor p, int64_t seed, Tensor sample_ids, int64_t step, int64_t stream) {
  require(out.dim() == 2 && out.is_contiguous() && out.scalar_type() == ScalarType::Bool, "bad output");
  require(p.scalar_type() == ScalarType::Double && p.dim() == 2 && p.size(0) == out.size(0) &&
              p.size(1) == out.size(1),
          "bad p");
  require(sample_ids.scalar_type() == ScalarType::Long && sample_ids.is_contiguous() &&
              sample_ids.numel() == out.size(0),
          "bad sample_ids");
  const int64_t n = out.size(1), row_stride = p.stride(0), stride = p.stride(1);
  if (out.numel() == 0) return;
  const int64_t* ids = data<int64_t>(sample_ids);
  const double* probability = data<double>(p);
  bool* first_row = data<bool>(out);
  const auto kernel = FASTGEN_KERNEL(bernoulli);
  for_each_piece(out.size(0), (n + 3) / 4, [&](int64_t row, int64_t block, int64_t blocks) {
    const Stream draws(static_cast<uint64_t>(seed), ids[row], static_cast<uint32_t>(step),
                       static_cast<uint32_t>(stream));
    kernel(draws, block, std::min(4 * blocks, n - 4 * block),
           probability + row * row_stride + 4 * block * stride, stride, first_row + row * n + 4 * block);
  });
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen_native, m) {
  m.def("bits(Tensor(a!) out, int seed, Tensor sample_ids, int step, int stream) -> ()");
  m.def("uniform(Tensor(a!) out, int seed, Tensor sample_ids, int step, int stream) -> ()");
  m.def("normal(Tensor(a!) out, int seed, Tensor sample_ids, int step, int stream) -> ()");
  m.def("bernoulli(Tensor(a!) out, Tensor p, int seed, Tensor sample_ids, int step, int stream) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgen_native, CPU, m) {
  m.impl("bits", TORCH_BOX(&fastgen::bits_out));
  m.impl("uniform", TORCH_BOX(&fastgen::uniform_out));
  m.impl("normal", TORCH_BOX(&fastgen::normal_out));
  m.impl("bernoulli", TORCH_BOX(&fastgen::bernoulli_out));
}
