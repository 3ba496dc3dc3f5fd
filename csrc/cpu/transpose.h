// Rows of memory into columns of lanes and back: lane i of column j is number j of row i.
#pragma once
#include <utility>

#include "vector_math.h"

namespace fastgen::FASTGEN_ISA {

template <class V>
constexpr int kLanes = Lane<V>::kCount;

template <class V, int... I>
FASTGEN_INLINE void interleave(V a, V b, V& first, V& second, std::integer_sequence<int, I...>) {
  constexpr int n = sizeof...(I);
  first = __builtin_shufflevector(a, b, (I / 2 + I % 2 * n)...);
  second = __builtin_shufflevector(a, b, (n / 2 + I / 2 + I % 2 * n)...);
}

// Of a square of lanes. Each pass interleaves the first half of the vectors with the second.
template <class V>
FASTGEN_INLINE void transpose(V (&square)[kLanes<V>]) {
  constexpr int n = kLanes<V>;
#pragma GCC unroll 4
  for (int pass = 1; pass < n; pass *= 2) {
    V next[n];
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i)
      interleave(square[i], square[i + n / 2], next[2 * i], next[2 * i + 1],
                 std::make_integer_sequence<int, n>());
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) square[i] = next[i];
  }
}

// Columns of vectors that hold rows of `count` numbers, and what the last square of lanes adds.
template <class V>
constexpr int64_t padded(int64_t count) {
  return (count + kLanes<V> - 1) / kLanes<V> * kLanes<V>;
}

// Reads `padded(count)` numbers from the start of each of as many rows as there are lanes, `count` apart.
template <class V>
FASTGEN_INLINE void rows_to_columns(const typename Lane<V>::Scalar* rows, int64_t count, V* columns) {
  constexpr int n = kLanes<V>;
  for (int64_t j = 0; j < count; j += n) {
    V square[n];
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) square[i] = load<V>(rows + i * count + j);
    transpose(square);
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) columns[j + i] = square[i];
  }
}

// Writes `padded(count)` numbers from the start of each row. What is too much lies in the next rows, which
// are written afterwards: those below in the square, and those squares that stand before.
template <class V>
FASTGEN_INLINE void columns_to_rows(const V* columns, int64_t count, typename Lane<V>::Scalar* rows) {
  constexpr int n = kLanes<V>;
  for (int64_t j = padded<V>(count) - n; j >= 0; j -= n) {
    V square[n];
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) square[i] = columns[j + i];
    transpose(square);
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) store(rows + i * count + j, square[i]);
  }
}

}  // namespace fastgen::FASTGEN_ISA
