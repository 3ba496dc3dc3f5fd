// Launchers of the draws of fastgen.random. Each returns CUDA's error code, 0 for success, and does not wait.
#pragma once
#include <cstdint>

typedef struct CUstream_st* cudaStream_t;

namespace fastgen::cuda {

// What all draws have in common: (rows, n) outputs, row r drawn for sample_ids[r], which lie on the device.
struct Draw {
  uint64_t seed;
  const int64_t* sample_ids;
  uint32_t step, stream;
  int64_t rows, n;
};

int bits(const Draw& draw, uint32_t* out, cudaStream_t queue);
int uniform(const Draw& draw, float* out, cudaStream_t queue);
int normal(const Draw& draw, float* out, cudaStream_t queue);
// Element (r, i) is true with probability p[r * row_stride + i * stride].
int bernoulli(const Draw& draw, const double* p, int64_t row_stride, int64_t stride, bool* out,
              cudaStream_t queue);

}  // namespace fastgen::cuda
