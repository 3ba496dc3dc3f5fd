// One text for the host compiler, nvcc and the CPU layer that runs CUDA kernels in tests.
#pragma once
#include <cstdint>

// On the host every function is static and inlined: the same header is compiled for several instruction
// sets, and the linker must not hand the AVX-512 copy of a function to a CPU without AVX-512.
#if defined(__CUDACC__)
#define FASTGEN_HD __host__ __device__ __forceinline__
#else
#define FASTGEN_HD static inline __attribute__((always_inline))
#endif

#if defined(__CUDACC__)
#define FASTGEN_MEMBER __host__ __device__ __forceinline__
#else
#define FASTGEN_MEMBER inline __attribute__((always_inline))
#endif
