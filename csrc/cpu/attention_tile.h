// Products of small matrices, c[m][n] += a[m][0] b[0][n] + a[m][1] b[1][n] + ..., in this order, by FMA: a
// number's bits depend on its row of a and its column of b alone. Numbers of a are read one by one, with any
// strides; rows of b and c are whole vectors.
#pragma once
#include <type_traits>

#include "vector_math.h"

namespace fastgen::FASTGEN_ISA {

template <class T>
using VectorOf = std::conditional_t<sizeof(T) == 4, F32, F64>;

// A tile's columns and rows: its sums and what they need fill the registers.
constexpr int kVectors = kBytes == 64 ? 4 : 3;

template <int N>
constexpr int kTileRows = kBytes == 64 ? (N == 4 ? 6 : 8) : (N == 3 ? 4 : 6);

FASTGEN_INLINE F32 repeat(float x) {
#if defined(__AVX512F__)
  return (F32)_mm512_set1_ps(x);
#elif defined(__AVX2__)
  return (F32)_mm256_set1_ps(x);
#else
  F32 v;
  for (int i = 0; i < kLanes32; ++i) v[i] = x;
  return v;
#endif
}
FASTGEN_INLINE F64 repeat(double x) {
#if defined(__AVX512F__)
  return (F64)_mm512_set1_pd(x);
#elif defined(__AVX2__)
  return (F64)_mm256_set1_pd(x);
#else
  F64 v;
  for (int i = 0; i < kLanes64; ++i) v[i] = x;
  return v;
#endif
}

template <class T>
struct Product {
  const T* a;
  int64_t a_row, a_step;  // from a row, and from a number of it, to the next
  const T* b;
  int64_t b_row;
  int64_t depth;
  T* c;
  int64_t c_row;
  bool begin;  // c is written, not added to
};

template <int M, int N, class T>
static void tile(const Product<T>& p, int64_t row, int64_t column) {
  using V = VectorOf<T>;
  constexpr int kCount = Lane<V>::kCount;
  V sum[M][N];
  T* c = p.c + row * p.c_row + column;
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) sum[m][n] = p.begin ? V{} : load<V>(c + m * p.c_row + n * kCount);
  const T *a = p.a + row * p.a_row, *b = p.b + column;
  const int64_t a_row = p.a_row, a_step = p.a_step, b_row = p.b_row;
  for (int64_t k = p.depth; k > 0; --k, a += a_step, b += b_row) {
    V right[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) right[n] = load<V>(b + n * kCount);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const V left = repeat(a[m * a_row]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[m][n] = multiply_add(left, right[n], sum[m][n]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) store(c + m * p.c_row + n * kCount, sum[m][n]);
}

template <int N, class T>
static void strip(const Product<T>& p, int64_t rows, int64_t column) {
  constexpr int kRows = kTileRows<N>;
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows) tile<kRows, N>(p, row, column);
  if (row + 4 <= rows) tile<4, N>(p, row, column), row += 4;
  if (row + 2 <= rows) tile<2, N>(p, row, column), row += 2;
  if (row < rows) tile<1, N>(p, row, column);
}

// `rows` of c, whose rows are so many vectors.
template <class T>
static void multiply(const Product<T>& p, int64_t rows, int64_t vectors) {
  constexpr int kCount = Lane<VectorOf<T>>::kCount;
  for (int64_t n = 0; n < vectors; n += kVectors) {
    const int64_t column = n * kCount;
    switch (vectors - n) {
      case 1:
        strip<1>(p, rows, column);
        break;
      case 2:
        strip<2>(p, rows, column);
        break;
      case 3:
        strip<3>(p, rows, column);
        break;
      default:
        strip<kVectors>(p, rows, column);
    }
  }
}

}  // namespace fastgen::FASTGEN_ISA
