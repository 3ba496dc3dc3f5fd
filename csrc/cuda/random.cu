// fastgen.random on the GPU: one thread draws the four elements of one Philox block. Compiled without
// contraction into FMA, so that normals have the bits of the other backends.
#include "cuda_compat.h"
#include "fastgen/math.h"
#include "fastgen/philox.h"
#include "random.h"

namespace fastgen::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxGridRows = 65535;

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T element[4];
};

struct Bits {
  using T = uint32_t;
  __device__ Four<T> operator()(const Words& words, int64_t, int64_t, int) const {
    return {words.w[0], words.w[1], words.w[2], words.w[3]};
  }
};

struct Uniform {
  using T = float;
  __device__ Four<T> operator()(const Words& words, int64_t, int64_t, int) const {
    Four<T> result;
#pragma unroll
    for (int k = 0; k < 4; k++) {
      result.element[k] = uniform_from_word<ScalarLanes>(static_cast<int32_t>(words.w[k]));
    }
    return result;
  }
};

struct Normal {
  using T = float;
  __device__ Four<T> operator()(const Words& words, int64_t, int64_t, int) const {
    Four<T> result;
#pragma unroll
    for (int k = 0; k < 4; k += 2) {
      const NormalPair<ScalarLanes> pair = normal_from_words<ScalarLanes>(
          static_cast<int32_t>(words.w[k]), static_cast<int32_t>(words.w[k + 1]));
      result.element[k] = pair.first;
      result.element[k + 1] = pair.second;
    }
    return result;
  }
};

struct Bernoulli {
  using T = bool;
  const double* p;
  int64_t row_stride, stride;

  __device__ Four<T> operator()(const Words& words, int64_t row, int64_t first, int count) const {
    const double* probability = p + row * row_stride + first * stride;
    Four<T> result{};
#pragma unroll
    for (int k = 0; k < 4; k++) {
      if (k < count) result.element[k] = words.w[k] < bernoulli_threshold(probability[k * stride]);
    }
    return result;
  }
};

// One store of four elements where the address allows it; rows of a length that is no multiple of four begin
// anywhere.
template <class T>
__device__ void store(T* out, const Four<T>& values, int count) {
  if (count == 4 && reinterpret_cast<uintptr_t>(out) % sizeof(values) == 0) {
    *reinterpret_cast<Four<T>*>(out) = values;
    return;
  }
#pragma unroll
  for (int k = 0; k < 4; k++) {
    if (k < count) out[k] = values.element[k];
  }
}

template <class Kind>
__global__ void __launch_bounds__(kThreads) draw_rows(Draw draw, Kind kind, typename Kind::T* out) {
  const int64_t block = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, first = 4 * block;
  if (first >= draw.n) return;
  const int count = static_cast<int>(min(draw.n - first, static_cast<int64_t>(4)));
  const int64_t row_step = static_cast<int64_t>(gridDim.y) * blockDim.y;
  for (int64_t row = blockIdx.y * blockDim.y + threadIdx.y; row < draw.rows; row += row_step) {
    const Stream stream(draw.seed, draw.sample_ids[row], draw.step, draw.stream);
    store(out + row * draw.n + first, kind(stream.block(static_cast<uint32_t>(block)), row, first, count),
          count);
  }
}

// A thread block covers a piece of one long row or several short rows, so that no thread needs a 64-bit
// division.
template <class Kind>
int launch(const Draw& draw, Kind kind, typename Kind::T* out, cudaStream_t queue) {
  if (draw.rows == 0 || draw.n == 0) return 0;
  const int64_t blocks = (draw.n + 3) / 4;
  unsigned across = 1;
  while (across < kThreads && across < blocks) across *= 2;
  const unsigned down = kThreads / across;
  const int64_t grid_rows = min((draw.rows + down - 1) / down, kMaxGridRows);
  const dim3 grid(static_cast<unsigned>((blocks + across - 1) / across), static_cast<unsigned>(grid_rows));
  LAUNCH_KERNEL(draw_rows<Kind>, grid, dim3(across, down), 0, queue, draw, kind, out);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace

int bits(const Draw& draw, uint32_t* out, cudaStream_t queue) { return launch(draw, Bits{}, out, queue); }

int uniform(const Draw& draw, float* out, cudaStream_t queue) { return launch(draw, Uniform{}, out, queue); }

int normal(const Draw& draw, float* out, cudaStream_t queue) { return launch(draw, Normal{}, out, queue); }

int bernoulli(const Draw& draw, const double* p, int64_t row_stride, int64_t stride, bool* out,
              cudaStream_t queue) {
  return launch(draw, Bernoulli{p, row_stride, stride}, out, queue);
}

}  // namespace fastgen::cuda
