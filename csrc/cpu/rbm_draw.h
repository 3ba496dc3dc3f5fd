// The draws of a block of units from their sums.
#pragma once
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

// Four vectors in step, as a policy of fastgen/math.h: each operation is done on all four before the next
// one, so that the core, whose window holds only a few dozen of them, finds operations that do not wait for
// each other.
struct InStep {
  struct I {
    I32 v[4];
  };
  struct F {
    F32 v[4];
  };
  template <class Result, class Operation>
  FASTGEN_INLINE Result each(Operation operation) {
    Result r;
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) r.v[k] = operation(k);
    return r;
  }
  FASTGEN_INLINE F constant(float x) {
    return each<F>([=](int) { return broadcast(x); });
  }
  FASTGEN_INLINE I as_int(F x) {
    return each<I>([=](int k) { return (I32)x.v[k]; });
  }
  FASTGEN_INLINE F as_float(I x) {
    return each<F>([=](int k) { return (F32)x.v[k]; });
  }
  FASTGEN_INLINE F to_float(I x) {
    return each<F>([=](int k) { return VectorLanes::to_float(x.v[k]); });
  }
  FASTGEN_INLINE I to_int(F x) {
    return each<I>([=](int k) { return VectorLanes::to_int(x.v[k]); });
  }
  FASTGEN_INLINE F maximum(F a, F b) {
    return each<F>([=](int k) { return VectorLanes::maximum(a.v[k], b.v[k]); });
  }
};

FASTGEN_INLINE InStep::F operator+(InStep::F a, InStep::F b) {
  return InStep::each<InStep::F>([=](int k) { return a.v[k] + b.v[k]; });
}
FASTGEN_INLINE InStep::F operator-(InStep::F a, InStep::F b) {
  return InStep::each<InStep::F>([=](int k) { return a.v[k] - b.v[k]; });
}
FASTGEN_INLINE InStep::F operator*(InStep::F a, InStep::F b) {
  return InStep::each<InStep::F>([=](int k) { return a.v[k] * b.v[k]; });
}
FASTGEN_INLINE InStep::I operator+(InStep::I a, InStep::I b) {
  return InStep::each<InStep::I>([=](int k) { return a.v[k] + b.v[k]; });
}
FASTGEN_INLINE InStep::I operator<<(InStep::I a, int bits) {
  return InStep::each<InStep::I>([=](int k) { return a.v[k] << bits; });
}

FASTGEN_INLINE F32 minus_magnitude(F32 x) { return (F32)((I32)x | INT32_MIN); }

// All ones where a unit is on. The unlikely state has probability e / (1 + e), e = exp(-|x|); the word
// decides for it in its upper 31 bits, so that rare states keep a fine resolution on either side.
FASTGEN_INLINE InStep::I draw_states(const InStep::F& x, const InStep::F& e, const UnitWords& words) {
  const auto likely_on = InStep::each<InStep::I>([&](int k) -> I32 { return x.v[k] >= 0.0f; });
  const auto r =
      InStep::each<InStep::I>([&](int k) { return (I32)((U32)(words.word[k] ^ likely_on.v[k]) >> 1); });
  const InStep::F u = (InStep::to_float(r) + InStep::constant(0.5f)) * (e + InStep::constant(1.0f));
  const InStep::F threshold = e * InStep::constant(0x1p31f);
  return InStep::each<InStep::I>([&](int k) { return likely_on.v[k] ^ (u.v[k] < threshold.v[k]); });
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
    const auto x = InStep::each<InStep::F>([&](int k) { return sums.v[4 * unit + k] * beta; });
    const auto e =
        exp_nonpositive<InStep>(InStep::each<InStep::F>([&](int k) { return minus_magnitude(x.v[k]); }));
    const InStep::I on = draw_states(x, e, words);
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
