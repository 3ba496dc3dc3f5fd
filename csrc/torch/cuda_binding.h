// One source, two libraries. With nvcc's objects the ops are torch.ops.fastgen_cuda.*, for tensors of a GPU.
// For the tests, FASTGEN_SIMT, the same kernels run on the CPU (tests/simt) as torch.ops.fastgen_simt.*.
#pragma once
#include "../cuda/error.h"
#include "native.h"

typedef struct CUstream_st* cudaStream_t;

#ifdef FASTGEN_SIMT
#define FASTGEN_CUDA_LIBRARY fastgen_simt
#define FASTGEN_CUDA_DEVICE CPU
#else
#include <torch/csrc/stable/accelerator.h>
#define FASTGEN_CUDA_LIBRARY fastgen_cuda
#define FASTGEN_CUDA_DEVICE CUDA
#endif

// torch's macros paste their arguments, so the names above have to be replaced first.
#define FASTGEN_DEFINE_OPS(library, m) STABLE_TORCH_LIBRARY_FRAGMENT(library, m)
#define FASTGEN_IMPLEMENT_OPS(library, device, m) STABLE_TORCH_LIBRARY_IMPL(library, device, m)

namespace fastgen::cuda {

// Makes the tensor's device the current one, and gives torch's current stream there.
class OnDeviceOf {
 public:
#ifdef FASTGEN_SIMT
  explicit OnDeviceOf(const Tensor&) {}
  cudaStream_t queue() const { return nullptr; }
#else
  explicit OnDeviceOf(const Tensor& tensor) : device_(tensor.get_device_index()), guard_(device_) {}
  cudaStream_t queue() const {
#if TORCH_TARGET_VERSION >= 0x020d000000000000
    return static_cast<cudaStream_t>(torch::stable::accelerator::getCurrentStream(device_).nativeHandle());
#else
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    return static_cast<cudaStream_t>(stream);
#endif
  }

 private:
  torch::stable::accelerator::DeviceIndex device_;
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

inline void check_launch(int code) {
  STD_TORCH_CHECK(code == 0, "fastgen: a CUDA kernel could not be launched: ", error_string(code));
}

}  // namespace fastgen::cuda
