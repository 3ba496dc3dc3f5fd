// The only CUDA header that a kernel source includes. nvcc gets CUDA; a host compiler gets the layer of
// tests/simt, which runs the same source on the CPU for the tests. For both to take one text, a kernel
//   is launched by LAUNCH_KERNEL(kernel, grid, block, shared_bytes, stream, arguments...),
//   declares shared memory by SHARED_ARRAY(type, name, count) and DYNAMIC_SHARED(type, name), pointers both,
//   pauses with __nanosleep in a loop that waits for another thread.
#pragma once
#ifdef __CUDACC__
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <cstdint>

#define LAUNCH_KERNEL(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)
#define SHARED_ARRAY(type, name, count)  \
  __shared__ type name##_storage[count]; \
  type* const name = name##_storage
#define DYNAMIC_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(dynamic_shared)
#else
#include "simt.h"

#define LAUNCH_KERNEL(kernel, grid, block, shared_bytes, stream, ...) \
  simt::launch(kernel, (grid), (block), (shared_bytes), (stream), __VA_ARGS__)
#define SHARED_ARRAY(type, name, count) type* const name = simt::shared_array<type>((count), [] {})
#define DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(simt::dynamic_shared())
#endif
