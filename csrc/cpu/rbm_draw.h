// The draws of a block of units from their sums.
#pragma once
#include "in_step.h"
#include "philox_simd.h"
#include "rbm_product.h"

namespace fastgen::FASTGEN_ISA {

// Words of a unit of outputs: word k of Philox block c in lane c of vector k.
struct UnitWords {
  I32 word[4];
};

FASTGEN_INLINE UnitWords draw_words(const StreamVectors& stream, int64_t first_output) {
  const U64 even = 2 * iota64() + static_cast<uint64_t>(first_output / 4);
  const U64 blocks[2] = {even, even + 1};
  BlockVector drawn[2];
  philox_blocks<2>(StreamVectors(stream), blocks, drawn);
  UnitWords words;
  for (int k = 0; k < 4; ++k) words.word[k] = (I32)join_low_halves(drawn[0].word[k], drawn[1].word[k]);
  return words;
}

using Four = InStep<4>;

FASTGEN_INLINE F32 minus_magnitude(F32 x) { return (F32)((I32)x | INT32_MIN); }

// All ones where a unit is on. The unlikely state has probability e / (1 + e), e = exp(-|x|); the word
// decides for it in its upper 31 bits, so that rare states keep a fine resolution on either side.
FASTGEN_INLINE Four::I draw_states(const Four::F& x, const Four::F& e, const UnitWords& words) {
  const auto likely_on = each<4, I32>([&](int k) -> I32 { return x.v[k] >= 0.0f; });
  const auto r = each<4, I32>([&](int k) { return (I32)((U32)(words.word[k] ^ likely_on.v[k]) >> 1); });
  const Four::F u = (Four::to_float(r) + Four::constant(0.5f)) * (e + Four::constant(1.0f));
  const Four::F threshold = e * Four::constant(0x1p31f);
  return each<4, I32>([&](int k) { return likely_on.v[k] ^ (u.v[k] < threshold.v[k]); });
}

// Lane c of `nibbles` holds the states of outputs 4 c to 4 c + 3: all as one string of bits.
FASTGEN_INLINE uint64_t bits_of_unit(I32 nibbles) {
  U32 lane;
  for (int i = 0; i < kLanes32; ++i) lane[i] = i;
  U32 bits = (U32)nibbles << (4 * (lane & 7));
  for (uint32_t step = 1; step < 8 && step < kLanes32; step *= 2)
    bits |= __builtin_shuffle(bits, lane ^ step);
  uint64_t whole = bits[0];
  if constexpr (kLanes32 > 8) whole |= static_cast<uint64_t>(bits[kLanes32 / 2]) << 32;
  return whole;
}

// Copies `count` outputs of a block from their places into a row.
static void unpack_outputs(const Sums& sums, int64_t count, float* row) {
  float placed[kWidth];
  store_sums(placed, sums);
  for (int o = 0; o < count; ++o) row[o] = placed[place_in_block(o)];
}

// Binary units: their new states as bits; their probabilities into means (a row, `count` of them) where asked
// for.
FASTGEN_INLINE uint64_t draw_binary(const Sums& sums, float beta, const StreamVectors& stream,
                                    int64_t first_output, int64_t count, float* means) {
  uint64_t bits = 0;
  Sums probability;
  for (int unit = 0; unit < kWidth / kUnit; ++unit) {
    const UnitWords words = draw_words(stream, first_output + unit * kUnit);
    const auto x = each<4, F32>([&](int k) { return sums.v[4 * unit + k] * beta; });
    const auto e = exp_nonpositive<Four>(each<4, F32>([&](int k) { return minus_magnitude(x.v[k]); }));
    const Four::I on = draw_states(x, e, words);
    I32 nibbles{};
    for (int k = 0; k < 4; ++k) {
      nibbles |= on.v[k] & (1 << k);
      if (means)
        probability.v[4 * unit + k] =
            VectorLanes::select(x.v[k] >= 0.0f, broadcast(1.0f), e.v[k]) / (e.v[k] + 1.0f);
    }
    bits |= bits_of_unit(nibbles) << (unit * kUnit % 64);
  }
  if (means) unpack_outputs(probability, count, means);
  return bits;
}

// Gaussian units: sums plus noise of variance 1 / beta. Writes those outputs whose bit in `free` is set.
static void draw_gaussian(const Sums& sums, float beta, const StreamVectors& stream, int64_t first_output,
                          int64_t count, uint64_t free, float* row) {
  const F32 deviation = broadcast(__builtin_sqrtf(beta));
  Sums drawn;
  for (int unit = 0; unit < kWidth / kUnit; ++unit) {
    const UnitWords words = draw_words(stream, first_output + unit * kUnit);
    for (int k = 0; k < 4; k += 2) {
      const NormalPair<VectorLanes> noise = normal_from_words<VectorLanes>(words.word[k], words.word[k + 1]);
      drawn.v[4 * unit + k] = sums.v[4 * unit + k] + noise.first / deviation;
      drawn.v[4 * unit + k + 1] = sums.v[4 * unit + k + 1] + noise.second / deviation;
    }
  }
  float values[kWidth];
  unpack_outputs(drawn, count, values);
  for (int o = 0; o < count; ++o)
    if (free >> o & 1) row[o] = values[o];
}

}  // namespace fastgen::FASTGEN_ISA
