// A row of x in 16-bit integers, block by block.
#pragma once
#include <limits>

#include "packed_words.h"

namespace fastgen::FASTGEN_ISA {

// Eight lanes on every instruction set: what a quarter of a block holds.
typedef float F8 __attribute__((vector_size(32)));
typedef int32_t I8 __attribute__((vector_size(32)));
typedef int16_t W8 __attribute__((vector_size(16)));
typedef int8_t B8 __attribute__((vector_size(8)));

template <class V>
FASTGEN_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}

FASTGEN_INLINE int32_t largest_lane(I8 v) {
  v = larger(v, (I8)__builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
  v = larger(v, (I8)__builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5));
  return std::max(v[0], v[1]);
}

FASTGEN_INLINE int32_t sum_of_lanes(I8 v) {
  v += (I8)__builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
  v += (I8)__builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
  return v[0] + v[1];
}

// Integers nearest to a block of 32 inputs over its scale, the largest of them kMost; returns the scale.
// Where an input is not finite, the scale is NaN and the integers are 0.
template <int kMost>
FASTGEN_INLINE float nearest_integers(const float* x, I8 (&q)[4]) {
  constexpr int32_t kInfinity = 0x7F800000;
  constexpr float kRound = 0x1.8p23f;
  F8 v[4];
  memcpy(v, x, sizeof v);
  const auto bits = [&](int i) { return (I8)v[i] & 0x7FFFFFFF; };  // order of magnitudes, NaN above all
  const int32_t top = largest_lane(larger(larger(bits(0), bits(1)), larger(bits(2), bits(3))));
  float size;
  memcpy(&size, &top, 4);
  size = std::max(size, 1e-30f);  // so that the quotients are finite, and zeros stay zeros
  const bool finite = top < kInfinity;
  const float inverse = kMost / size;
  for (int i = 0; i < 4; ++i) {
    const F8 nearest = (v[i] * inverse + kRound) - kRound;
    q[i] = finite ? __builtin_convertvector(nearest, I8) : I8{};
  }
  return finite ? size / kMost : std::numeric_limits<float>::quiet_NaN();
}

// Block c of a group from 32 inputs.
FASTGEN_INLINE void quantize_block(const float* x, int c, QuantizedGroup& to) {
  I8 q[4];
  const float scale = nearest_integers<32767>(x, q);
  const int32_t sum = sum_of_lanes((q[0] + q[1]) + (q[2] + q[3]));
  for (int s = 0; s < 4; ++s) {
    const I8 a = q[s / 2 * 2], b = q[s / 2 * 2 + 1];
    const I8 words = s % 2 ? (I8)__builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15)
                           : (I8)__builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
    const W8 narrow = __builtin_convertvector(words, W8);
    memcpy(to.q[s][c], &narrow, sizeof narrow);
  }
  for (int i = 0; i < 4; ++i) {
    const B8 low = __builtin_convertvector(q[i], B8), high = __builtin_convertvector(q[i] >> 8, B8);
    memcpy(to.low[i / 2][c] + i % 2 * 8, &low, sizeof low);
    memcpy(to.high[i / 2][c] + i % 2 * 8, &high, sizeof high);
  }
  for (int lane = 0; lane < 4; ++lane) {
    to.scale[c][lane] = scale;
    to.scaled_sum[c][lane] = scale * static_cast<float>(sum);
    to.eight_sums[c][lane] = 8 * sum;
  }
}

static void quantize_row(const float* x, int64_t inputs, QuantizedGroup* to) {
  constexpr int64_t kGroup = kWeightBlock * kBlockGroup;
  for (int64_t k = 0; k < inputs; k += kGroup, ++to)
    for (int c = 0; c < kBlockGroup; ++c) {
      const int64_t begin = k + c * kWeightBlock, left = inputs - begin;
      if (left >= kWeightBlock) {
        quantize_block(x + begin, c, *to);
        continue;
      }
      float some[kWeightBlock] = {};
      if (left > 0) memcpy(some, x + begin, left * sizeof *x);
      quantize_block(some, c, *to);
    }
}

}  // namespace fastgen::FASTGEN_ISA
