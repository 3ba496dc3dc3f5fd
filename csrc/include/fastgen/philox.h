// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
// A draw is a pure function of (seed, sample id, step, element, stream): no state, no order.
#pragma once
#include "fastgen/host_device.h"

namespace fastgen {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;  // round multipliers
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;  // key increments
constexpr int kPhiloxRounds = 10;

struct Words {
  uint32_t w[4];
};

// The 64 bits of a product. nvcc makes the same multiplication of the halves, and more of a 64-bit product.
FASTGEN_HD uint64_t wide_product(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  return static_cast<uint64_t>(__umulhi(a, b)) << 32 | a * b;
#else
  return static_cast<uint64_t>(a) * b;
#endif
}

FASTGEN_HD Words philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = wide_product(kPhiloxM0, c0);
    const uint64_t p1 = wide_product(kPhiloxM1, c2);
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  return {{c0, c1, c2, c3}};
}

// Everything of a counter but the block: which sample, at which step, for which use.
struct Stream {
  uint32_t key0, key1, step, sample_low, sample_high_and_stream;

  FASTGEN_MEMBER Stream(uint64_t seed, int64_t sample_id, uint32_t step_, uint32_t stream)
      : key0(static_cast<uint32_t>(seed)),
        key1(static_cast<uint32_t>(seed >> 32)),
        step(step_),
        sample_low(static_cast<uint32_t>(sample_id)),
        sample_high_and_stream(stream << 24 |
                               (static_cast<uint32_t>(static_cast<uint64_t>(sample_id) >> 32) & 0xFFFFFFu)) {}

  FASTGEN_MEMBER uint64_t seed() const { return static_cast<uint64_t>(key1) << 32 | key0; }

  // Words 4 * block to 4 * block + 3 of the stream.
  FASTGEN_MEMBER Words block(uint32_t block) const {
    return philox(block, step, sample_low, sample_high_and_stream, key0, key1);
  }
};

// The smallest word that a Bernoulli draw of probability p refuses: bits < p * 2^32, exactly.
FASTGEN_HD uint64_t bernoulli_threshold(double p) {
  const double scaled = p * 4294967296.0;
  const uint64_t whole = static_cast<uint64_t>(scaled);
  return whole + (static_cast<double>(whole) < scaled ? 1 : 0);
}

}  // namespace fastgen
