// Runs CUDA C++ kernels on the CPU, to test them without a GPU: the same sources, compiled by g++ or clang++,
// with the threads of a block as fibers. csrc/cuda/cuda_compat.h includes this file where nvcc does not
// compile.
//
// What it shows: wrong results in any order of threads, reads of memory never written, barriers and warp
// operations that not all threads reach, deadlocks; under the address sanitizer accesses out of bounds, under
// the thread sanitizer races between threads of a warp, of a block and of different blocks. What it cannot
// show: speed, and whatever the chip does that CUDA's documentation does not say. Not here: cooperative
// groups, clusters, textures, tensor cores, streams that run at the same time, __activemask.
#pragma once
#ifdef __CUDACC__
#error "simt.h stands in for CUDA where the host compiler compiles a kernel; nvcc needs none of it"
#endif

#include <cuda_runtime.h>  // for the types: dim3, float4, cudaStream_t, cudaError_t

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __launch_bounds__
#undef __forceinline__
#define __global__ [[maybe_unused]] static
#define __device__
#define __host__
#define __constant__ static
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ simt_needs_SHARED_ARRAY_or_DYNAMIC_SHARED

#include <algorithm>

#include "async_copy.h"
#include "atomics.h"
#include "barrier.h"
#include "block.h"
#include "host_api.h"
#include "intrinsics.h"
#include "scheduler.h"
#include "shared_memory.h"
#include "warp.h"

namespace simt {
SIMT_UNTRACKED inline uint3 thread_index() { return running->current->index; }
SIMT_UNTRACKED inline uint3 block_index() { return running->index; }
SIMT_UNTRACKED inline dim3 block_extent() { return running->launch->block; }
SIMT_UNTRACKED inline dim3 grid_extent() { return running->launch->grid; }
}  // namespace simt
#define threadIdx (simt::thread_index())
#define blockIdx (simt::block_index())
#define blockDim (simt::block_extent())
#define gridDim (simt::grid_extent())
