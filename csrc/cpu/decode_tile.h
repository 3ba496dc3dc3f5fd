// A block of 64 keys against a few rows of queries: scores, weights and weighted values.
//
// Each number is one chain: a score over the head in order, a weighted value over the keys in order. How many
// rows go together changes no bit. Keys that a row does not see get no weight and are not multiplied.
#pragma once
#include "decode_attention.h"
#include "stored.h"
#include "transpose.h"

namespace fastgen::FASTGEN_ISA {

constexpr int kKeys = kKeyBlock;
constexpr int kKeyVectors = kKeys / kLanes32;
constexpr int kTileRows = kBytes == 64 ? 6 : 3;  // rows whose sums, with 4 vectors each, fill the registers
constexpr float kNone = -__builtin_inff();

// Column d of `columns`, 64 numbers, gets number d of each of up to 64 rows. Behind them it is left as it is.
template <class S>
static void transpose_keys(const S* rows, int64_t stride, int64_t count, int64_t size, float* columns) {
  constexpr int n = kLanes32;
  for (int64_t k = 0; k < count; k += n)
    for (int64_t d = 0; d < size; d += n) {
      F32 square[n];
      const S* row = rows + k * stride + d;
      const int width = static_cast<int>(smaller(size - d, n));
      if (width == n && count - k >= n) {
#pragma GCC unroll 16
        for (int i = 0; i < n; ++i) square[i] = Stored<S>::load(row + i * stride, n);
      } else {
        for (int i = 0; i < n; ++i)
          square[i] = k + i < count ? Stored<S>::load(row + i * stride, width) : F32{};
      }
      transpose(square);
      float* column = columns + d * kKeys + k;
      if (width == n) {
#pragma GCC unroll 16
        for (int i = 0; i < n; ++i) store(column + i * kKeys, square[i]);
      } else {
        for (int i = 0; i < width; ++i) store(column + i * kKeys, square[i]);
      }
    }
}

// Rows as float, `padded` apart, with zeros behind their `size` numbers.
template <class S>
static void copy_values(const S* rows, int64_t stride, int64_t count, int64_t size, int64_t padded,
                        float* copy) {
  for (int64_t k = 0; k < count; ++k)
    for (int64_t d = 0; d < padded; d += kLanes32) {
      const int width = static_cast<int>(size <= d ? 0 : smaller(size - d, kLanes32));
      store(copy + k * padded + d, width ? Stored<S>::load(rows + k * stride + d, width) : F32{});
    }
}

// scores[r][k] = q[r] . column k.
template <int R>
FASTGEN_INLINE void score(const float* const* q, const float* columns, int64_t size, float (*scores)[kKeys]) {
  constexpr int kTogether = kBytes == 32 && R == 1 ? 8 : 4;
  for (int v = 0; v < kKeyVectors; v += kTogether) {
    F32 sum[R][kTogether] = {};
    const float* column = columns + v * kLanes32;
    for (int64_t d = 0; d < size; ++d, column += kKeys) {
      F32 one[R];
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) one[r] = broadcast(q[r][d]);
#pragma GCC unroll 8
      for (int j = 0; j < kTogether; ++j) {
        const F32 key = load<F32>(column + j * kLanes32);
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) sum[r][j] = multiply_add(one[r], key, sum[r][j]);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < kTogether; ++j) store(scores[r] + (v + j) * kLanes32, sum[r][j]);
  }
}

template <int step, int... I>
FASTGEN_INLINE F32 larger_of_pairs(F32 x, std::integer_sequence<int, I...>) {
  const F32 other = __builtin_shufflevector(x, x, (I ^ step)...);
  return x > other ? x : other;
}

// The largest lane in all lanes.
FASTGEN_INLINE F32 spread_largest(F32 x) {
  constexpr std::make_integer_sequence<int, kLanes32> lanes;
  if constexpr (kLanes32 > 8) x = larger_of_pairs<8>(x, lanes);
  if constexpr (kLanes32 > 4) x = larger_of_pairs<4>(x, lanes);
  return larger_of_pairs<1>(larger_of_pairs<2>(x, lanes), lanes);
}

// exp(x) of an x <= 0; 0 where that is below 2^-125.
FASTGEN_INLINE F32 exp_of_negative(F32 x) {
  const auto tiny = x < broadcast(-86.5f);
  const F32 y = exp_within_range(tiny ? broadcast(-86.5f) : x);
  return tiny ? F32{} : y;
}

// Scores of keys from .. to - 1 become weights; returns what earlier sums have to be multiplied with.
FASTGEN_INLINE float weigh(float* scores, int from, int to, float scale, float softcap, float& largest,
                           float* sums) {
  F32 s[kKeyVectors], top = broadcast(kNone);
#pragma GCC unroll 16
  for (int v = 0; v < kKeyVectors; ++v) s[v] = load<F32>(scores + v * kLanes32) * broadcast(scale);
  if (softcap > 0)
#pragma GCC unroll 1
    for (int v = 0; v < kKeyVectors; ++v) s[v] = broadcast(softcap) * tanh(s[v] / broadcast(softcap));
  if (from > 0 || to < kKeys) {
    I32 lane;
    for (int i = 0; i < kLanes32; ++i) lane[i] = i;
#pragma GCC unroll 16
    for (int v = 0; v < kKeyVectors; ++v, lane += kLanes32)
      s[v] = lane >= from && lane < to ? s[v] : broadcast(kNone);
  }
#pragma GCC unroll 16
  for (int v = 0; v < kKeyVectors; ++v) top = s[v] > top ? s[v] : top;
  top = spread_largest(top);
  const F32 before = broadcast(largest);
  top = top > before ? top : before;
  largest = top[0];
  top = top == broadcast(kNone) ? F32{} : top;  // nothing but scores of -inf: all weights are 0
#pragma GCC unroll 16
  for (int v = 0; v < kKeyVectors; ++v) {
    s[v] = exp_of_negative(s[v] - top);
    store(scores + v * kLanes32, s[v]);
  }
  const F32 factor = exp_of_negative(before - top);
  constexpr int kEach = 16 / kLanes32;  // vectors of the sums
#pragma GCC unroll 4
  for (int n = kKeyVectors / 2; n >= kEach; n /= 2)
#pragma GCC unroll 8
    for (int v = 0; v < n; ++v) s[v] += s[v + n];
#pragma GCC unroll 4
  for (int v = 0; v < kEach; ++v)
    store(sums + v * kLanes32, multiply_add(load<F32>(sums + v * kLanes32), factor, s[v]));
  return factor[0];
}

// acc = acc * factor + weights . values of keys from .. to - 1, N vectors of each row.
template <int R, int N>
FASTGEN_INLINE void mix_vectors(const float (*weights)[kKeys], int from, int to, const float* values,
                                int64_t stride, const float* factor, float* acc, int64_t acc_stride) {
  F32 sum[R][N];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j)
      sum[r][j] = load<F32>(acc + r * acc_stride + j * kLanes32) * broadcast(factor[r]);
  for (int k = from; k < to; ++k) {
    F32 one[R];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) one[r] = broadcast(weights[r][k]);
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      const F32 value = load<F32>(values + k * stride + j * kLanes32);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) sum[r][j] = multiply_add(one[r], value, sum[r][j]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) store(acc + r * acc_stride + j * kLanes32, sum[r][j]);
}

template <int R>
static void mix(const float (*weights)[kKeys], int from, int to, const float* values, int64_t stride,
                int64_t size, const float* factor, float* acc, int64_t acc_stride) {
  int64_t d = 0;
  for (; d + 4 * kLanes32 <= size + kLanes32 - 1; d += 4 * kLanes32)
    mix_vectors<R, 4>(weights, from, to, values + d, stride, factor, acc + d, acc_stride);
  for (; d < size; d += kLanes32)
    mix_vectors<R, 1>(weights, from, to, values + d, stride, factor, acc + d, acc_stride);
}

}  // namespace fastgen::FASTGEN_ISA
