// Philox4x32-10 on vectors: a 64-bit lane holds one block, so that a round is two multiplications whose high
// halves come by one shift; what is left in the upper halves is never read.
#pragma once
#include "simd.h"

namespace fastgen::FASTGEN_ISA {

// Word w of block i is the low half of lane i of word[w].
struct BlockVector {
  U64 word[4];
};

// N vectors of blocks in step, since one alone would wait for its multiplications.
template <int N>
FASTGEN_INLINE void philox_blocks(const Stream& stream, const U64 (&block)[N], BlockVector (&out)[N]) {
  const U64 m0 = broadcast64(kPhiloxM0), m1 = broadcast64(kPhiloxM1);
  U64 c0[N], c1[N], c2[N], c3[N];
  for (int n = 0; n < N; ++n) {
    c0[n] = block[n];
    c1[n] = broadcast64(stream.step);
    c2[n] = broadcast64(stream.sample_low);
    c3[n] = broadcast64(stream.sample_high_and_stream);
  }
  uint32_t k0 = stream.key0, k1 = stream.key1;
#pragma GCC unroll 10
  for (int round = 0; round < kPhiloxRounds; ++round) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const U64 p0 = multiply_low_halves(c0[n], m0), p1 = multiply_low_halves(c2[n], m1);
      c0[n] = (p1 >> 32) ^ c1[n] ^ broadcast64(k0);
      c2[n] = (p0 >> 32) ^ c3[n] ^ broadcast64(k1);
      c1[n] = p1;
      c3[n] = p0;
    }
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  for (int n = 0; n < N; ++n) out[n] = {{c0[n], c1[n], c2[n], c3[n]}};
}

}  // namespace fastgen::FASTGEN_ISA
