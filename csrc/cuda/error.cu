#include "cuda_compat.h"
#include "error.h"

namespace fastgen::cuda {

const char* error_string(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

}  // namespace fastgen::cuda
