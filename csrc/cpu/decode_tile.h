// A block of 64 keys against a few rows of queries: scores, weights and weighted values.
//
// A score has sixteen chains, d mod 16, each over the head in order, which are added by halves: chain i to
// chain i + 8, of these i to i + 4, then i + 2 and i + 1. A weighted value is one chain over the keys in
// order. How many rows go together changes no bit. Keys that a row does not see get no weight and are not
// multiplied.
#pragma once
#include <utility>

#include "decode_attention.h"
#include "stored.h"

namespace fastgen::FASTGEN_ISA {

constexpr int kKeys = kKeyBlock;
constexpr int kKeyVectors = kKeys / kLanes32;
constexpr int kTileRows = kBytes == 64 ? 6 : 3;  // rows whose sums, 4 vectors each, fill the registers
constexpr int kChains = 16;                      // of a score
constexpr int kParts = kChains / kLanes32;       // vectors of a score's chains
constexpr int kTogether = 4 / kParts;            // keys whose chains are summed at the same time
constexpr float kNone = -__builtin_inff();

// Lane i of a plus lane i + step, and behind every `step` of them as many of b: the lanes that are left.
template <int step, int... I>
FASTGEN_INLINE F32 fold(F32 a, F32 b, std::integer_sequence<int, I...>) {
  constexpr int n = kLanes32;
  const F32 moved = __builtin_shufflevector(a, b, (I & step ? (I ^ step) + n : I ^ step)...);
#if defined(__AVX512F__)  // the compiler takes a shuffle, which occupies a unit of the products
  constexpr int kOfB = ((I & step ? 1 << I : 0) + ...);
  return (F32)_mm512_mask_blend_ps(kOfB, (__m512)a, (__m512)b) + moved;
#else
  return __builtin_shufflevector(a, b, (I & step ? I + n : I)...) + moved;
#endif
}
template <int step>
FASTGEN_INLINE F32 fold(F32 a, F32 b) {
  return fold<step>(a, b, std::make_integer_sequence<int, kLanes32>());
}

// The chains of kTogether keys, each in kParts vectors, become four of each: those of d mod 4.
FASTGEN_INLINE F32 fold_to_quads(const F32 (&chains)[4]) {
  if constexpr (kTogether == 4)
    return fold<4>(fold<8>(chains[0], chains[1]), fold<8>(chains[2], chains[3]));
  else if constexpr (kTogether == 2)
    return fold<4>(chains[0] + chains[1], chains[2] + chains[3]);
  else
    return (chains[0] + chains[2]) + (chains[1] + chains[3]);
}

constexpr int reversed_bits(int i) {
  int reversed = 0;
  for (int bit = 1; bit < kLanes32; bit *= 2, i /= 2) reversed = 2 * reversed + i % 2;
  return reversed;
}
template <int... I>
FASTGEN_INLINE F32 reverse_lane_bits(F32 x, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(x, x, reversed_bits(I)...);
}

// The scores of as many keys as a vector has lanes. Folding leaves key k in the lane whose number has the
// bits of k in reverse.
FASTGEN_INLINE F32 fold_to_scores(const F32 (&quads)[4]) {
  return reverse_lane_bits(fold<1>(fold<2>(quads[0], quads[1]), fold<2>(quads[2], quads[3])),
                           std::make_integer_sequence<int, kLanes32>());
}

// What several rows use is read once: the compiler would read it again for each of them.
FASTGEN_INLINE F32 in_register(F32 x) {
#if defined(__x86_64__)
  asm("" : "+v"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
  return x;
}

// Keys or values where they lie, or copied. Those far from the processor have the next rows that are read.
template <class S, bool far>
struct Rows {
  const S* data;
  int64_t stride;
  const S* next;
};

// Memory that is read a block later, on its way to the second cache: the processor does not see by itself
// what comes after a block.
template <int count, class S>
FASTGEN_INLINE void fetch(const S* p) {
#pragma GCC unroll 16
  for (int i = 0; i < count; i += 64 / sizeof(S)) __builtin_prefetch(p + i, 0, 2);
}

// scores[r][k] = q[r] . key k, of `count` keys; behind the last it is that one's again, up to a whole vector.
// Rows of q are `padded` apart, which is a multiple of kChains.
template <int R, class S, bool far>
static __attribute__((noinline)) void score(const float* q, int64_t padded, const Rows<S, far>& keys,
                                            int64_t count, float (*scores)[kKeys]) {
  for (int64_t first = 0; first < count; first += kLanes32) {
    F32 quads[R][4];
#pragma GCC unroll 1
    for (int group = 0; group < 4; ++group) {
      const S* row[kTogether];
#pragma GCC unroll 4
      for (int k = 0; k < kTogether; ++k)
        row[k] = keys.data + smaller(first + group * kTogether + k, count - 1) * keys.stride;
      F32 chains[R][4] = {};
      const S* next = keys.next + (first + group * kTogether) * keys.stride;
      for (int64_t d = 0; d < padded; d += kChains)
#pragma GCC unroll 4
        for (int part = 0; part < kParts; ++part) {
          const int64_t at = d + part * kLanes32;
          if (far && part == 0) fetch<kTogether * kChains>(next + d * kTogether);
          F32 one[R];
#pragma GCC unroll 6
          for (int r = 0; r < R; ++r) one[r] = load<F32>(q + r * padded + at);
#pragma GCC unroll 4
          for (int k = 0; k < kTogether; ++k) {
            const F32 key = in_register(Stored<S>::load(row[k] + at, kLanes32));
#pragma GCC unroll 6
            for (int r = 0; r < R; ++r) {
              F32& chain = chains[r][k * kParts + part];
              chain = multiply_add(one[r], key, chain);
            }
          }
        }
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) quads[r][group] = fold_to_quads(chains[r]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) store(scores[r] + first, fold_to_scores(quads[r]));
  }
}

// Rows as float, `padded` apart, with zeros behind their `size` numbers.
template <class S>
static void copy_rows(const S* rows, int64_t stride, int64_t count, int64_t size, int64_t padded,
                      float* copy) {
  for (int64_t k = 0; k < count; ++k)
    for (int64_t d = 0; d < padded; d += kLanes32) {
      const int width = static_cast<int>(size <= d ? 0 : smaller(size - d, kLanes32));
      store(copy + k * padded + d, width ? Stored<S>::load(rows + k * stride + d, width) : F32{});
    }
}

template <int step, int... I>
FASTGEN_INLINE F32 larger_of_pairs(F32 x, std::integer_sequence<int, I...>) {
  return maximum(x, __builtin_shufflevector(x, x, (I ^ step)...));
}

// The largest lane in all lanes.
FASTGEN_INLINE F32 spread_largest(F32 x) {
  constexpr std::make_integer_sequence<int, kLanes32> lanes;
  if constexpr (kLanes32 > 8) x = larger_of_pairs<8>(x, lanes);
  if constexpr (kLanes32 > 4) x = larger_of_pairs<4>(x, lanes);
  return larger_of_pairs<1>(larger_of_pairs<2>(x, lanes), lanes);
}

// (2^x - 1) / x for |x| <= 1/2, interpolated at Chebyshev nodes: relative error of 2^x below 6e-9.
constexpr double kPowerOf2[] = {0.6931471880262288,   0.2402265076056809,    0.055503571142190004,
                                0.009618082557283178, 0.0013390863364696123, 0.0001545316294336166};
constexpr float kLog2OfE = 1.4426950408889634f, kLogOf2 = 0.6931471805599453f;

// 2^x of an x <= 0; 0 where that is below 2^-126.5. NaN stays NaN.
FASTGEN_INLINE F32 power_of_negative(F32 x) {
  constexpr double kRound = Lane<F32>::kRound + Lane<F32>::kBias;
  x = maximum(all<F32>(-127), x);
  const F32 shifted = x + all<F32>(kRound), rest = x - (shifted - all<F32>(kRound));
  const F32 power = multiply_add(polynomial(kPowerOf2, rest), rest, all<F32>(1));
  return power * (F32)((I32)shifted << Lane<F32>::kMantissa);
}

// Scores of keys from .. to - 1, in units of log(2), become weights; returns what earlier sums have to be
// multiplied with. With a cap, they come divided by it.
FASTGEN_INLINE float weigh(float* scores, int from, int to, float cap, float& largest, float* sums) {
  F32 s[kKeyVectors], top = broadcast(kNone);
#pragma GCC unroll 16
  for (int v = 0; v < kKeyVectors; ++v) s[v] = load<F32>(scores + v * kLanes32);
  if (cap > 0)
#pragma GCC unroll 1
    for (int v = 0; v < kKeyVectors; ++v) s[v] = broadcast(cap * kLog2OfE) * tanh(s[v]);
  if (from > 0 || to < kKeys) {
    I32 lane;
    for (int i = 0; i < kLanes32; ++i) lane[i] = i;
#pragma GCC unroll 16
    for (int v = 0; v < kKeyVectors; ++v, lane += kLanes32)
      s[v] = lane >= from && lane < to ? s[v] : broadcast(kNone);
  }
#pragma GCC unroll 16
  for (int v = 0; v < kKeyVectors; ++v) top = maximum(s[v], top);
  top = spread_largest(top);
  const F32 before = broadcast(largest);
  top = maximum(top, before);
  largest = top[0];
  top = top == broadcast(kNone) ? F32{} : top;  // nothing but scores of -inf: all weights are 0
#pragma GCC unroll 16
  for (int v = 0; v < kKeyVectors; ++v) {
    s[v] = power_of_negative(s[v] - top);
    store(scores + v * kLanes32, s[v]);
  }
  const F32 factor = power_of_negative(before - top);
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

// acc = acc * factor + weights . values of keys from .. to - 1, N vectors of each row from number d on.
template <int R, int N, class S, bool far>
FASTGEN_INLINE void mix_vectors(const float (*weights)[kKeys], int from, int to, const Rows<S, far>& values,
                                int64_t d, const float* factor, float* acc, int64_t padded) {
  F32 sum[R][N];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j)
      sum[r][j] = load<F32>(acc + r * padded + d + j * kLanes32) * broadcast(factor[r]);
  const S *row = values.data + from * values.stride + d, *next = values.next + from * values.stride + d;
  for (int k = from; k < to; ++k, row += values.stride, next += values.stride) {
    F32 one[R];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) one[r] = weights[r][k] - F32{};  // x + 0 would cost an addition
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      if (far && j * kLanes32 * sizeof(S) % 64 == 0) fetch<1>(next + j * kLanes32);
      const F32 value = in_register(Stored<S>::load(row + j * kLanes32, kLanes32));
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) sum[r][j] = multiply_add(one[r], value, sum[r][j]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) store(acc + r * padded + d + j * kLanes32, sum[r][j]);
}

template <int R, class S, bool far>
static __attribute__((noinline)) void mix(const float (*weights)[kKeys], int from, int to,
                                          const Rows<S, far>& values, int64_t size, const float* factor,
                                          float* acc, int64_t padded) {
  int64_t d = 0;
  for (; d + 4 * kLanes32 <= size + kLanes32 - 1; d += 4 * kLanes32)
    mix_vectors<R, 4>(weights, from, to, values, d, factor, acc, padded);
  for (; d < size; d += kLanes32) mix_vectors<R, 1>(weights, from, to, values, d, factor, acc, padded);
}

}  // namespace fastgen::FASTGEN_ISA
