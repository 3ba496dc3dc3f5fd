// Kernels with one bug each, and correct ones beside them: tests of the layer itself. test_layer.py says
// which build must report which. Usage: seeded_bugs NAME
#include <cstdio>
#include <cstring>
#include <vector>

#include "cuda_compat.h"

constexpr int kThreads = 64;

// Sum over a block by a tree in shared memory; BUG names what is wrong with it.
enum class Tree { kCorrect, kNoBarrier, kOutOfBounds, kUninitialised, kPartialBarrier, kTwoBarriers };
template <Tree BUG>
__global__ void tree_sum(const float* x, float* y, int n) {
  SHARED_ARRAY(float, partial, kThreads);
  const int t = threadIdx.x, i = blockIdx.x * kThreads + t;
  if (BUG != Tree::kUninitialised || t != 5) partial[t] = i < n ? x[i] : 0.f;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (BUG == Tree::kOutOfBounds ? t <= half : t < half) partial[t] += partial[t + half];
    if (BUG == Tree::kNoBarrier) continue;
    if (BUG == Tree::kPartialBarrier && t >= half) continue;
    if (BUG == Tree::kTwoBarriers && t % 2 == 1) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  }
  if (BUG == Tree::kPartialBarrier) __syncthreads();
  if (t == 0) atomicAdd(y, partial[0]);
}

// Sliding sum with a tile that is loaded again and again.
template <bool BUG>
__global__ void tile_reuse(const float* x, float* y, int n) {
  SHARED_ARRAY(float, tile, kThreads);
  const int t = threadIdx.x;
  float sum = 0;
  for (int k = 0; k < 3; k++) {
    tile[t] = x[(t + k) % n];
    __syncthreads();
    sum += tile[(t + 40) % kThreads];
    if (!BUG) __syncthreads();
  }
  if (blockIdx.x == 0) y[t] = sum;
}

// Lanes of a warp pass values through shared memory.
template <bool BUG>
__global__ void warp_exchange(float* y) {
  SHARED_ARRAY(float, values, kThreads);
  const int t = threadIdx.x;
  values[t] = float(t);
  if (!BUG) __syncwarp();
  const float other = values[t ^ 1];
  if (blockIdx.x == 0) y[t] = other;
}

// The last block to arrive adds up what all wrote.
template <bool FENCES>
__global__ void last_block_sum(float* y) {
  if (threadIdx.x != 0) return;
  y[2 + blockIdx.x] = 1.f + blockIdx.x;
  if (FENCES) __threadfence();
  const unsigned arrived = atomicAdd(reinterpret_cast<unsigned*>(y), 1u);
  if (FENCES) __threadfence();
  if (arrived != gridDim.x - 1) return;
  float sum = 0;
  for (unsigned b = 0; b < gridDim.x; b++) sum += y[2 + b];
  y[1] = sum;
}

template <bool BUG>
__global__ void async_tile(const float* x, float* y) {
  SHARED_ARRAY(float4, tile, 2 * kThreads);
  const int t = threadIdx.x;
  float sum = 0;
  const auto load = [&](int k) {
    __pipeline_memcpy_async(tile + k % 2 * kThreads + t, x + 4 * (t / 4), 16);
    __pipeline_commit();
  };
  load(0);
  for (int k = 0; k < 3; k++) {
    if (k < 2) load(k + 1);
    if (!BUG) __pipeline_wait_prior(k < 2 ? 1 : 0);
    __syncthreads();
    sum += tile[k % 2 * kThreads + (t + 7) % kThreads].x;
    __syncthreads();
  }
  if (blockIdx.x == 0) y[t] = sum;
}

__global__ void global_out_of_bounds(const float* x, float* y) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  y[i] = 2 * x[i];
}
__global__ void misaligned_load(const float* x, float* y) {
  const float4 v = *reinterpret_cast<const float4*>(x + threadIdx.x % 8 + 1);
  if (blockIdx.x == 0) y[threadIdx.x] = v.x;
}
__global__ void index_overflow(const float* x, float* y, int large, int n) {
  const int i = large + int(threadIdx.x) + large;
  if (blockIdx.x == 0) y[threadIdx.x] = x[i < 0 ? 0 : i % n];
}
__global__ void block_race(float* y) {
  if (threadIdx.x == 0) y[0] += 1;
}
__global__ void thread_race(float* y) {
  if (blockIdx.x == 0) y[threadIdx.x / 2] = float(threadIdx.x);
}
__global__ void read_beside_atomic(float* y) {
  atomicAdd(&y[0], 1.f);
  if (y[0] > 1e9f) atomicExch(&y[1], 1.f);
}
__global__ void lane_outside_mask(float* y) {
  if (threadIdx.x < 32) atomicAdd(y, __shfl_xor_sync(0x0000ffffu, 1.f, 1));
}
__global__ void shuffle_from_outside(float* y) {
  if (threadIdx.x % 2 == 0) atomicAdd(y, __shfl_xor_sync(0x55555555u, 1.f, 1));
}
__global__ void warp_divergence(float* y) {
  if (threadIdx.x % 2 == 0) {
    atomicAdd(y, __shfl_xor_sync(~0u, 1.f, 2));
  } else {
    atomicAdd(y, __shfl_xor_sync(~0u, 1.f, 2));
  }
}
__global__ void half_warp_deadlock(float* y) {
  if (threadIdx.x < 16) __syncwarp();
  if (threadIdx.x >= 16) __syncthreads();
  atomicAdd(y, 1.f);
}
// Legal since sm_70: a thread that returned counts as arrived.
__global__ void early_return(float* y) {
  SHARED_ARRAY(float, values, kThreads);
  if (threadIdx.x >= 40) return;
  values[threadIdx.x] = 1;
  __syncthreads();
  if (blockIdx.x == 0) y[threadIdx.x] = values[(threadIdx.x + 1) % 40];
}
__global__ void spin_on_flag(float* y) {
  unsigned* flag = reinterpret_cast<unsigned*>(y) + 2 * blockIdx.x;
  if (threadIdx.x == 0) {
    while (atomicAdd(flag, 0u) == 0) __nanosleep(20);
    y[2 * blockIdx.x + 1] = 5;
  }
  if (threadIdx.x == 33) atomicExch(flag, 1u);
}
__global__ void warp_operations(float* y) {
  const unsigned t = threadIdx.x, lane = t % 32;
  float bad = 0;
  bad += __shfl_sync(~0u, lane, 3) != 3;
  bad += __shfl_up_sync(~0u, lane, 1) != (lane ? lane - 1 : 0);
  bad += __shfl_down_sync(~0u, lane, 1, 8) != (lane % 8 == 7 ? lane : lane + 1);
  bad += __shfl_xor_sync(~0u, lane, 16) != (lane ^ 16);
  bad += __ballot_sync(~0u, lane % 2 == 0) != 0x55555555u;
  bad += !__any_sync(~0u, lane == 31) || __all_sync(~0u, lane != 31);
  bad += __match_any_sync(~0u, lane / 4) != 0xfu << lane / 4 * 4;
  bad += __reduce_add_sync(~0u, lane) != 496 || __reduce_max_sync(~0u, lane) != 31;
  bad +=
      __syncthreads_count(t < 10) != 10 || __syncthreads_or(t == 63) != 1 || __syncthreads_and(t != 63) != 0;
  atomicAdd(&y[0], bad);
  atomicAdd(&y[1], 1.f);
}

int main(int argc, char** argv) {
  const char* name = argc > 1 ? argv[1] : "";
  const int n = 100;
  const dim3 grid(2), block(kThreads);
  std::vector<float> x(n), y(n, 0.f);
  for (int i = 0; i < n; i++) x[i] = float(i % 16);
  bool known = false;
  const auto run = [&](const char* candidate, auto kernel, auto... arguments) {
    if (strcmp(name, candidate) != 0) return;
    known = true;
    LAUNCH_KERNEL(kernel, grid, block, 0, nullptr, arguments...);
  };
  const float* in = x.data();
  float* out = y.data();
  run("tree_sum", tree_sum<Tree::kCorrect>, in, out, n);
  run("tree_no_barrier", tree_sum<Tree::kNoBarrier>, in, out, n);
  run("tree_out_of_bounds", tree_sum<Tree::kOutOfBounds>, in, out, n);
  run("tree_uninitialised", tree_sum<Tree::kUninitialised>, in, out, n);
  run("tree_partial_barrier", tree_sum<Tree::kPartialBarrier>, in, out, n);
  run("tree_two_barriers", tree_sum<Tree::kTwoBarriers>, in, out, n);
  run("tile", tile_reuse<false>, in, out, n);
  run("tile_no_barrier", tile_reuse<true>, in, out, n);
  run("warp_exchange", warp_exchange<false>, out);
  run("warp_no_syncwarp", warp_exchange<true>, out);
  run("last_block", last_block_sum<true>, out);
  run("last_block_no_fence", last_block_sum<false>, out);
  run("async_tile", async_tile<false>, in, out);
  run("async_no_wait", async_tile<true>, in, out);
  run("global_out_of_bounds", global_out_of_bounds, in, out);
  run("misaligned_load", misaligned_load, in, out);
  run("index_overflow", index_overflow, in, out, 1500000000, n);
  run("block_race", block_race, out);
  run("thread_race", thread_race, out);
  run("read_beside_atomic", read_beside_atomic, out);
  run("lane_outside_mask", lane_outside_mask, out);
  run("shuffle_from_outside", shuffle_from_outside, out);
  run("warp_divergence", warp_divergence, out);
  run("half_warp_deadlock", half_warp_deadlock, out);
  run("early_return", early_return, out);
  run("spin_on_flag", spin_on_flag, out);
  run("warp_operations", warp_operations, out);
  if (!known) return fprintf(stderr, "no kernel named %s\n", name), 2;
  if (cudaGetLastError() != cudaSuccess) {
    fprintf(stderr, "launch error: %s\n", cudaGetErrorString(cudaGetLastError()));
    return 3;
  }
  for (int i = 0; i < kThreads; i++) printf("%g ", y[i]);
  printf("\n");
}
