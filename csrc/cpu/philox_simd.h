// Philox4x32-10 on vectors: a 64-bit lane holds one block, so that a round is two multiplications whose high
// halves come by one shift; what is left in the upper halves is never read.
#pragma once
#include "simd.h"

namespace fastgen::FASTGEN_ISA {

// The keys of the ten rounds, for all lanes: they depend on the seed alone.
struct RoundKeys {
  U64 key0[kPhiloxRounds], key1[kPhiloxRounds];

  explicit FASTGEN_MEMBER RoundKeys(uint64_t seed) {
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < kPhiloxRounds; ++round) {
      key0[round] = broadcast64(k0);
      key1[round] = broadcast64(k1);
      k0 += kPhiloxW0;
      k1 += kPhiloxW1;
    }
  }
};

// What the first rounds need of a stream: of a block's counter only the first word varies, so round 0 and
// round 1 have one product each left to compute.
struct StreamVectors {
  const RoundKeys& keys;
  U64 round0_c2, round1_c0, round1_c2, round2_c2;

  FASTGEN_MEMBER StreamVectors(const RoundKeys& keys_, const Stream& s) : keys(keys_) {
    const uint64_t first = static_cast<uint64_t>(kPhiloxM1) * s.sample_low;
    const uint32_t c0 = static_cast<uint32_t>(first >> 32) ^ s.step ^ s.key0;
    const uint64_t second = static_cast<uint64_t>(kPhiloxM0) * c0;
    round0_c2 = broadcast64(s.sample_high_and_stream ^ s.key1);
    round1_c0 = keys.key0[1] ^ broadcast64(static_cast<uint32_t>(first));
    round1_c2 = keys.key1[1] ^ broadcast64(second >> 32);
    round2_c2 = keys.key1[2] ^ broadcast64(static_cast<uint32_t>(second));
  }
};

// Word w of block i is the low half of lane i of word[w].
struct BlockVector {
  U64 word[4];
};

// N vectors of blocks (numbers in the low halves) in step, since one alone would wait for its
// multiplications.
template <int N>
FASTGEN_INLINE void philox_blocks(const StreamVectors& s, const U64 (&block)[N], BlockVector (&out)[N]) {
  const U64 m0 = broadcast64(kPhiloxM0), m1 = broadcast64(kPhiloxM1);
  U64 c0[N], c1[N], c2[N], c3[N];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
    const U64 first = multiply_low_halves(block[n], m0);
    const U64 second = multiply_low_halves((first >> 32) ^ s.round0_c2, m1);
    c0[n] = (second >> 32) ^ s.round1_c0;
    c1[n] = second;
    const U64 p0 = multiply_low_halves(c0[n], m0), p1 = multiply_low_halves(first ^ s.round1_c2, m1);
    c0[n] = (p1 >> 32) ^ c1[n] ^ s.keys.key0[2];
    c1[n] = p1;
    c2[n] = (p0 >> 32) ^ s.round2_c2;
    c3[n] = p0;
  }
#pragma GCC unroll 10
  for (int round = 3; round < kPhiloxRounds; ++round) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const U64 p0 = multiply_low_halves(c0[n], m0), p1 = multiply_low_halves(c2[n], m1);
      c0[n] = (p1 >> 32) ^ c1[n] ^ s.keys.key0[round];
      c2[n] = (p0 >> 32) ^ c3[n] ^ s.keys.key1[round];
      c1[n] = p1;
      c3[n] = p0;
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) out[n] = {{c0[n], c1[n], c2[n], c3[n]}};
}

}  // namespace fastgen::FASTGEN_ISA
