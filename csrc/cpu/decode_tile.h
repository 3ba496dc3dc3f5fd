// A block of 64 keys against a few rows of queries: scores, weights and weighted values.
//
// A score has four chains, d mod 4, each over the head in order, which are added as (0 + 2) + (1 + 3); a
// weighted value is one chain over the keys in order. How many rows go together changes no bit. Keys that a
// row does not see get no weight and are not multiplied.
#pragma once
#include <utility>

#include "decode_attention.h"
#include "stored.h"

namespace fastgen::FASTGEN_ISA {

constexpr int kKeys = kKeyBlock;
constexpr int kKeyVectors = kKeys / kLanes32;
constexpr int kTileRows = kBytes == 64 ? 6 : 3;    // rows whose sums, 4 vectors each, fill the registers
constexpr int kDirectRows = kBytes == 64 ? 4 : 3;  // so few rows read the keys where they lie
constexpr int kQuads = kLanes32 / 4;               // blocks of four numbers in a vector
constexpr float kNone = -__builtin_inff();

FASTGEN_INLINE F32 broadcast_quad(const float* p) {
#if defined(__AVX512F__)
  return (F32)_mm512_broadcast_f32x4(_mm_loadu_ps(p));
#elif defined(__AVX2__)
  return (F32)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
#else
  return load<F32>(p);
#endif
}

// Block b of vector j becomes block j of vector b.
FASTGEN_INLINE void transpose_quads([[maybe_unused]] F32 (&v)[kQuads]) {
#if defined(__AVX512F__)
  const __m512 a = _mm512_shuffle_f32x4((__m512)v[0], (__m512)v[1], 0x44);
  const __m512 b = _mm512_shuffle_f32x4((__m512)v[2], (__m512)v[3], 0x44);
  const __m512 c = _mm512_shuffle_f32x4((__m512)v[0], (__m512)v[1], 0xEE);
  const __m512 d = _mm512_shuffle_f32x4((__m512)v[2], (__m512)v[3], 0xEE);
  v[0] = (F32)_mm512_shuffle_f32x4(a, b, 0x88), v[1] = (F32)_mm512_shuffle_f32x4(a, b, 0xDD);
  v[2] = (F32)_mm512_shuffle_f32x4(c, d, 0x88), v[3] = (F32)_mm512_shuffle_f32x4(c, d, 0xDD);
#elif defined(__AVX2__)
  const __m256 a = (__m256)v[0], b = (__m256)v[1];
  v[0] = (F32)_mm256_permute2f128_ps(a, b, 0x20), v[1] = (F32)_mm256_permute2f128_ps(a, b, 0x31);
#endif
}

// Memory that is read a block later, on its way to the second cache. Keys are read across their rows, and
// blocks of keys and values take turns: the processor does not see it coming by itself.
FASTGEN_INLINE void expect(const void* p) { __builtin_prefetch(p, 0, 2); }

// A block of 64 keys where they lie. Sum i = 0 .. 3 of as many keys as a vector has lanes takes keys i, i +
// 4,
// ... with four numbers each.
template <class S>
struct KeysInPlace {
  const S *rows, *next;  // of the next block
  int64_t stride;

  // Numbers d .. d + lanes - 1 of the keys of sum i, of those from `first` on, four at a time.
  inline __attribute__((always_inline)) void quads(int64_t first, int i, int64_t d, F32 (&v)[kQuads]) const {
    const S* row = rows + first * stride + d;
#pragma GCC unroll 4
    for (int b = 0; b < kQuads; ++b) v[b] = Stored<S>::load(row + (i + 4 * b) * stride, kLanes32);
    transpose_quads(v);
  }

  // As much of the next block as all sums together read at d, where its rows follow each other.
  inline __attribute__((always_inline)) void expect_next(int64_t first, int64_t d) const {
    const S* p = next + first * stride + d * kLanes32;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes32 * kLanes32; i += 64 / sizeof(S)) expect(p + i);
  }
};

// The same numbers, copied one after the other by pack_keys.
struct PackedKeys {
  const float* packed;
  int64_t padded;

  void expect_next(int64_t, int64_t) const {}
  inline __attribute__((always_inline)) void quads(int64_t first, int i, int64_t d, F32 (&v)[kQuads]) const {
    const float* quad = packed + first * padded + d * kLanes32 + i * kLanes32;
#pragma GCC unroll 4
    for (int b = 0; b < kQuads; ++b) v[b] = load<F32>(quad + 4 * b * kLanes32);
  }
};

// Of `count` keys; behind the last it is that one again, up to as many as a vector has lanes.
template <class S>
static void pack_keys(const S* rows, int64_t stride, int64_t count, int64_t size, int64_t padded,
                      float* packed) {
  for (int64_t first = 0; first < count; first += kLanes32)
    for (int64_t d = 0; d < size; d += kLanes32) {
      const int width = static_cast<int>(smaller(size - d, kLanes32));
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        F32 v[kQuads];
#pragma GCC unroll 4
        for (int b = 0; b < kQuads; ++b)
          v[b] = Stored<S>::load(rows + smaller(first + i + 4 * b, count - 1) * stride + d, width);
        transpose_quads(v);
#pragma GCC unroll 4
        for (int b = 0; b < kQuads; ++b)
          store(packed + first * padded + (d + 4 * b) * kLanes32 + i * kLanes32, v[b]);
      }
    }
}

template <int... I>
FASTGEN_INLINE F32 add_quads(const F32 (&v)[4], std::integer_sequence<int, I...>) {
  constexpr int n = kLanes32;
  const auto low = [](F32 a, F32 b) __attribute__((always_inline)) {  // a0 b0 a1 b1
    return __builtin_shufflevector(a, b, (I / 4 * 4 + I % 4 / 2 + I % 2 * n)...);
  };
  const auto high = [](F32 a, F32 b) __attribute__((always_inline)) {  // a2 b2 a3 b3
    return __builtin_shufflevector(a, b, (I / 4 * 4 + I % 4 / 2 + I % 2 * n + 2)...);
  };
  const F32 ab = low(v[0], v[1]) + high(v[0], v[1]), cd = low(v[2], v[3]) + high(v[2], v[3]);
  return __builtin_shufflevector(ab, cd, (I / 4 * 4 + I % 2 + I % 4 / 2 * n)...) +
         __builtin_shufflevector(ab, cd, (I / 4 * 4 + I % 2 + 2 + I % 4 / 2 * n)...);
}

// scores[r][k] = q[r] . key k, for the keys of one vector; rows of q are `padded` apart.
template <int R, class Keys>
FASTGEN_INLINE void score(const float* q, int64_t padded, int64_t size, const Keys& keys, int64_t first,
                          float (*scores)[kKeys]) {
  constexpr int kTogether = kBytes == 64 ? 4 : 2;  // sums at a time
  F32 sums[R][4];
#pragma GCC unroll 2
  for (int begin = 0; begin < 4; begin += kTogether) {
    F32 sum[R][kTogether] = {};
    for (int64_t d = 0; d < size; d += kLanes32) {
      F32 v[kTogether][kQuads];
      if (begin == 0) keys.expect_next(first, d);
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i) keys.quads(first, begin + i, d, v[i]);
#pragma GCC unroll 4
      for (int b = 0; b < kQuads; ++b)
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
          const F32 one = broadcast_quad(q + r * padded + d + 4 * b);
#pragma GCC unroll 4
          for (int i = 0; i < kTogether; ++i) sum[r][i] = multiply_add(one, v[i][b], sum[r][i]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i) sums[r][begin + i] = sum[r][i];
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
    store(scores[r] + first, add_quads(sums[r], std::make_integer_sequence<int, kLanes32>()));
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

// What several rows use is read once: the compiler would read it again for each of them.
FASTGEN_INLINE F32 in_register(F32 x) {
#if defined(__x86_64__)
  asm("" : "+v"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
  return x;
}

// Values of a block where they lie, or copied.
template <class S>
struct Values {
  const S *rows, *next;  // of the next block
  int64_t stride;
};

// acc = acc * factor + weights . values of keys from .. to - 1, N vectors of each row from number d on.
template <int R, int N, class S>
FASTGEN_INLINE void mix_vectors(const float (*weights)[kKeys], int from, int to, const Values<S>& values,
                                int64_t d, const float* factor, float* acc, int64_t padded) {
  F32 sum[R][N];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j)
      sum[r][j] = load<F32>(acc + r * padded + d + j * kLanes32) * broadcast(factor[r]);
  const S *row = values.rows + from * values.stride + d, *next = values.next + from * values.stride + d;
  for (int k = from; k < to; ++k, row += values.stride, next += values.stride) {
    F32 one[R];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) one[r] = weights[r][k] - F32{};  // x + 0 would cost an addition
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      if (j * kLanes32 * sizeof(S) % 64 == 0) expect(next + j * kLanes32);
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

template <int R, class S>
static void mix(const float (*weights)[kKeys], int from, int to, const Values<S>& values, int64_t size,
                const float* factor, float* acc, int64_t padded) {
  int64_t d = 0;
  for (; d + 4 * kLanes32 <= size + kLanes32 - 1; d += 4 * kLanes32)
    mix_vectors<R, 4>(weights, from, to, values, d, factor, acc, padded);
  for (; d < size; d += kLanes32) mix_vectors<R, 1>(weights, from, to, values, d, factor, acc, padded);
}

}  // namespace fastgen::FASTGEN_ISA
