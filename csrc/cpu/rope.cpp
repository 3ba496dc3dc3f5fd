#include "rope.h"

#include <utility>

#include "stored.h"

namespace fastgen::FASTGEN_ISA {
namespace {

template <class S>
struct Heads {
  using V = typename Stored<S>::Vector;
  using Real = typename Lane<V>::Scalar;
  static constexpr int kCount = Lane<V>::kCount;
  const S* from;
  int64_t from_stride;
  S* to;
  int64_t to_stride;
  const Real *cos, *sin;
  int64_t heads, size;

  // Elements i and i + size / 2.
  void rotate_halves() const {
    const int64_t half = size / 2;
    for (int64_t i = 0; i < half; i += kCount) {
      const int n = static_cast<int>(smaller(half - i, kCount));
      const V c = Stored<Real>::load(cos + i, n), s = Stored<Real>::load(sin + i, n);
      for (int64_t h = 0; h < heads; ++h) {
        const S* x = from + h * from_stride + i;
        S* y = to + h * to_stride + i;
        const V a = Stored<S>::load(x, n), b = Stored<S>::load(x + half, n);
        Stored<S>::store(y, multiply_add(a, c, -(b * s)), n);
        Stored<S>::store(y + half, multiply_add(b, c, a * s), n);
      }
    }
  }

  // Elements 2i and 2i + 1.
  void rotate_neighbours() const { rotate_neighbours(std::make_integer_sequence<int, kCount>()); }

  template <int... I>
  void rotate_neighbours(std::integer_sequence<int, I...>) const {
    for (int64_t i = 0; i < size; i += kCount) {
      const int n = static_cast<int>(smaller(size - i, kCount));
      const V half_c = Stored<Real>::load(cos + i / 2, n / 2),
              half_s = Stored<Real>::load(sin + i / 2, n / 2);
      const V c = __builtin_shufflevector(half_c, half_c, (I / 2)...);
      const V s = __builtin_shufflevector(half_s, -half_s, (I / 2 + (I % 2 ? 0 : kCount))...);
      for (int64_t h = 0; h < heads; ++h) {
        const V x = Stored<S>::load(from + h * from_stride + i, n);
        const V partner = __builtin_shufflevector(x, x, (I ^ 1)...);
        Stored<S>::store(to + h * to_stride + i, multiply_add(x, c, partner * s), n);
      }
    }
  }
};

template <class S>
void rows(const Rope& task, int64_t first_row, int64_t last_row) {
  using Real = typename Heads<S>::Real;
  const int64_t width = task.heads * task.size, half = task.size / 2;
  for (int64_t r = first_row; r < last_row; ++r) {
    const int64_t angles = r % task.positions * half;
    const Heads<S> heads{static_cast<const S*>(task.x) + r * width,
                         task.size,
                         static_cast<S*>(task.y) + r * width,
                         task.size,
                         static_cast<const Real*>(task.cos) + angles,
                         static_cast<const Real*>(task.sin) + angles,
                         task.heads,
                         task.size};
    task.interleaved ? heads.rotate_neighbours() : heads.rotate_halves();
  }
}

}  // namespace

void rope(const Rope& task, int64_t first_row, int64_t last_row) {
  if (task.storage == Storage::float64) return rows<double>(task, first_row, last_row);
  if (task.storage == Storage::bfloat16) return rows<Bfloat16>(task, first_row, last_row);
  rows<float>(task, first_row, last_row);
}

void rotate(const float* from, int64_t from_stride, float* to, int64_t to_stride, const float* cos,
            const float* sin, int64_t heads, int64_t size, bool interleaved) {
  const Heads<float> row{from, from_stride, to, to_stride, cos, sin, heads, size};
  interleaved ? row.rotate_neighbours() : row.rotate_halves();
}

}  // namespace fastgen::FASTGEN_ISA
