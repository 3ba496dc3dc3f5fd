// Scores of a block of queries and keys, and their softmax as far as the keys went.
//
// A weight is exp(score - offset) 2^-power. The offset is 0 and the power an integer, so that a weight found
// under one power becomes that of another by a multiplication which is exact: what is added up does not
// depend on where blocks of keys begin. (Scores beyond 2^16, where exp has no exact reduction, take the
// highest of them as the offset; their sums are rounded once for each block.) A weight below the smallest
// normal number is 0.
#pragma once
#include "attention_block.h"

namespace fastgen::FASTGEN_ISA {

// The larger of two numbers, `b` where `a` is NaN.
template <class V>
FASTGEN_INLINE V larger(V a, V b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(a[0]) == 4)
    return (V)_mm512_max_ps((__m512)a, (__m512)b);
  else
    return (V)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
  if constexpr (sizeof(a[0]) == 4)
    return (V)_mm256_max_ps((__m256)a, (__m256)b);
  else
    return (V)_mm256_max_pd((__m256d)a, (__m256d)b);
#else
  return a > b ? a : b;
#endif
}

template <class V>
FASTGEN_INLINE V lowest_exponent(V power) {  // the x whose exp(x) 2^-power is the largest that counts as 0
  return (power - all<V>(Lane<V>::kBias)) * all<V>(0.69314718055994531);
}

// exp(x) 2^-power, at most about 1; `lowest` is that of the power. NaN stays NaN.
template <class V>
FASTGEN_INLINE V scaled_exp(V x, V power, V lowest) {
  x = larger(lowest, x);
  const V whole = nearest_integer(x * all<V>(1.4426950408889634));
  V rest = multiply_add(whole, all<V>(-Lane<V>::kLog2High), x);
  rest = multiply_add(whole, all<V>(-Lane<V>::kLog2Low), rest);
  const V above_1 = multiply_add(rest * rest, polynomial(Lane<V>::kExp, rest), rest);
  const V exponent = larger(all<V>(-Lane<V>::kBias), whole - power);
  return (all<V>(1) + above_1) * power_of_2(exponent);
}

template <class V>
FASTGEN_INLINE bool any(Int<V> mask) {
  return any_bit((U32)mask);
}

template <class T>
struct Softmax {
  using V = VectorOf<T>;
  static constexpr double kLarge = 65536, kNothing = -131072;  // the power where no key was seen
  V highest[kVectors], offset[kVectors], power[kVectors], total[kVectors];

  Softmax() {
    for (int v = 0; v < kVectors; ++v)
      highest[v] = all<V>(kHidden), offset[v] = V{}, power[v] = all<V>(kNothing), total[v] = V{};
  }

  // Scores of n keys become weights; `numbers` sums of the queries become those of the new power.
  void weigh(T* scores, int64_t n, int64_t vectors, T* sums, int64_t numbers) {
    for (int64_t v = 0; v < vectors; ++v) {
      T* column = scores + v * kLanesOf<T>;
      raise(v, column, n, sums + v * kLanesOf<T>, numbers);
      const V from = offset[v], two = power[v], lowest = lowest_exponent(two);
      V sum = total[v];
      for (int64_t t = 0; t < n; ++t) {
        const V weight = scaled_exp(load<V>(column + t * kWidth<T>) - from, two, lowest);
        sum += weight;
        store(column + t * kWidth<T>, weight);
      }
      total[v] = sum;
    }
  }

  V log_total(int64_t v) const {
    const V low = multiply_add(power[v], all<V>(Lane<V>::kLog2Low), log(total[v]));
    return multiply_add(power[v], all<V>(Lane<V>::kLog2High), low);
  }

 private:
  void raise(int64_t v, const T* column, int64_t n, T* sums, int64_t numbers) {
    V top = highest[v];
    for (int64_t t = 0; t < n; ++t) top = larger(load<V>(column + t * kWidth<T>), top);
    highest[v] = top;
    const auto nothing = top == all<V>(kHidden), large = ~nothing & (magnitude(top) >= all<V>(kLarge));
    const V whole = nearest_integer(top * all<V>(1.4426950408889634));
    const V to = nothing ? all<V>(kNothing) : large ? V{} : whole, from = large ? top : V{};
    if (!any<V>((to != power[v]) | (from != offset[v]))) return;
    V factor = power_of_2(larger(all<V>(-Lane<V>::kBias), power[v] - to));
    if (const auto moved = from != offset[v]; any<V>(moved)) {
      const V x = (offset[v] - from) + (power[v] - to) * all<V>(0.69314718055994531);
      factor = moved ? scaled_exp(x < V{} ? x : V{}, V{}, lowest_exponent(V{})) : factor;
    }
    offset[v] = from, power[v] = to;
    total[v] = factor == V{} ? V{} : total[v] * factor;
    for (int64_t d = 0; d < numbers; ++d, sums += kWidth<T>) {
      const V sum = load<V>(sums);
      store(sums, factor == V{} ? V{} : sum * factor);
    }
  }
};

// Numbers one row of which belongs to each key.
template <class T>
struct Matrix {
  const T* data;
  int64_t row, column;
};

// n keys (or values), from key `first` on: as they lie, or as a copy in which all is float, or finite.
template <class T, class S>
static Matrix<T> keys_of(const Strided& x, const Attention::Sequence& s, int64_t head, int64_t first,
                         int64_t n, int64_t numbers, bool clean, Buffer<T>& buffer) {
  const S* start =
      static_cast<const S*>(x.data) + s.batch * x.batch + head * x.head + (s.key_start + first) * x.row;
  if constexpr (std::is_same_v<S, T>)
    if (!clean) return {start, x.row, x.column};
  T* copy = buffer.of(n * numbers);
  for (int64_t t = 0; t < n; ++t)
    for (int64_t d = 0; d < numbers; d += kLanesOf<T>) {
      const int left = static_cast<int>(std::min<int64_t>(kLanesOf<T>, numbers - d));
      S some[kLanesOf<T>] = {};
      const S* from = start + t * x.row + d * x.column;
      if (x.column != 1) {
        for (int i = 0; i < left; ++i) some[i] = from[i * x.column];
        from = some;
      }
      VectorOf<T> v = load_row<T>(from, left);
      if (clean) v = v - v == VectorOf<T>{} ? v : VectorOf<T>{};
      Stored<T>::store(copy + t * numbers + d, v, left);
    }
  return {copy, numbers, 1};
}

// Scores of n keys from key `first` on. `added` are the addends, if there are any; `tanh` takes what the soft
// cap gave, where it is wanted.
template <class T>
static void find_scores(const Queries<T>& queries, const T* columns, const Matrix<T>& keys, int64_t first,
                        int64_t n, const T* added, T* tanh_out, T* scores) {
  using V = VectorOf<T>;
  const Attention& task = queries.task;
  multiply(
      Product<T>{keys.data, keys.row, keys.column, columns, kWidth<T>, task.size, scores, kWidth<T>, true}, n,
      queries.vectors);
  if (task.softcap != 0 || added)
    for (int64_t t = 0; t < n; ++t)
      for (int64_t v = 0; v < queries.vectors; ++v) {
        const int64_t at = t * kWidth<T> + v * kLanesOf<T>;
        V score = load<V>(scores + at);
        if (task.softcap != 0) {
          const V curved = tanh(score / all<V>(task.softcap));
          if (tanh_out) store(tanh_out + at, curved);
          score = all<V>(task.softcap) * curved;
        }
        if (added) {
          const V addend = load<V>(added + at);
          score = addend == all<V>(kHidden) ? addend : score + addend;
        }
        store(scores + at, score);
      }
  if (queries.edge(first, n)) hide_by_place(queries, first, n, scores);
}

}  // namespace fastgen::FASTGEN_ISA
