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

#if defined(__AVX512F__)
// The states of a unit of outputs, as the string of bits that draw_states and bits_of_unit give, from a 2^31
// e that is off by less than 9e-5 of it; false if that leaves a state open, which happens once in some 200
// units. Unlikely is r (1 + e) < 2^31 e: the difference of the two sides is off by less than twice as much of
// 2^31 e wherever it decides, and the 2^-12 asked for leave room for rounding (2^-22) and for the half that r
// is without.
FASTGEN_INLINE bool draw_roughly(const Four::F& x, const UnitWords& words, uint64_t& bits) {
  const auto constant = [](float c) { return _mm512_set1_ps(c); };
  __mmask16 decided = 0xFFFF, on[4];
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    const __m512 field = (__m512)x.v[k];
    const __m512 t = _mm512_fmadd_ps((__m512)minus_magnitude(x.v[k]), constant(1.44269504f), constant(31.0f));
    const __m512 f = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF);                  // t - floor(t)
    __m512 p = _mm512_fmadd_ps(constant(0.07802452f), f, constant(0.22606716f));  // 2^f to 7.5e-5 of it
    p = _mm512_fmadd_ps(p, f, constant(0.69583356f));
    p = _mm512_fmadd_ps(p, f, constant(0.9999252f));
    const __m512 e = _mm512_scalef_ps(p, t);  // p 2^floor(t)
    const __mmask16 likely_on = _mm512_cmp_ps_mask(field, constant(0.0f), _CMP_GE_OQ);
    const __m512i word = (__m512i)words.word[k];
    const __m512i r =
        _mm512_srli_epi32(_mm512_mask_xor_epi32(word, likely_on, word, _mm512_set1_epi32(-1)), 1);
    const __m512 more = _mm512_fmadd_ps(e, constant(0x1p-31f), constant(1.0f));
    const __m512 difference = _mm512_fmsub_ps(_mm512_cvtepi32_ps(r), more, e);
    const __m512 doubt = _mm512_fmadd_ps(e, constant(0x1p-12f), constant(2.0f));
    decided &= _mm512_cmp_ps_mask(_mm512_abs_ps(difference), doubt, _CMP_GT_OQ);  // never of a NaN
    on[k] = likely_on ^ _mm512_movepi32_mask((__m512i)difference);
  }
  __m128i nibbles = _mm_maskz_set1_epi8(on[0], 1);
  nibbles = _mm_mask_add_epi8(nibbles, on[1], nibbles, _mm_set1_epi8(2));
  nibbles = _mm_mask_add_epi8(nibbles, on[2], nibbles, _mm_set1_epi8(4));
  nibbles = _mm_mask_add_epi8(nibbles, on[3], nibbles, _mm_set1_epi8(8));
  const __m128i bytes = _mm_maddubs_epi16(nibbles, _mm_set1_epi16(0x1001));  // first + 16 second
  bits = static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_packus_epi16(bytes, bytes)));
  return decided == 0xFFFF;
}
#else
FASTGEN_INLINE bool draw_roughly(const Four::F&, const UnitWords&, uint64_t&) { return false; }
#endif

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
    uint64_t rough;
    if (!means && draw_roughly(x, words, rough)) {
      bits |= rough << (unit * kUnit % 64);
      continue;
    }
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
