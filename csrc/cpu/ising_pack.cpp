#include "ising_rows.h"
#include "simd.h"

namespace fastgen::FASTGEN_ISA {
namespace {

// Bit i of the result: spin i of 64 is up. A byte that is neither -1 nor +1 leaves a bit in `wrong`.
FASTGEN_INLINE uint64_t up_bits(const int8_t* spins, U64& wrong) {
  const U64 ones = broadcast64(0x0101010101010101u);
  uint64_t down = 0;
  for (int byte = 0; byte < 64; byte += kBytes) {
    const U64 x = load<U64>(spins + byte), sign = (x >> 7) & ones;
    wrong |= x ^ ((sign << 8) - (sign << 1)) ^ ones;  // a byte of -1 is 0xFE away from one of +1
    down |= sign_bits(x) << byte;
  }
  return ~down;
}

// Even bits of x to the low half, odd bits to the high half.
FASTGEN_INLINE uint64_t split_even_odd(uint64_t x) {
  for (int step = 1; step < 32; step *= 2) {
    constexpr uint64_t kMiddle[] = {0x2222222222222222u, 0x0C0C0C0C0C0C0C0Cu, 0x00F000F000F000F0u,
                                    0x0000FF000000FF00u, 0x00000000FFFF0000u};
    const uint64_t swap = (x ^ (x >> step)) & kMiddle[__builtin_ctz(step)];
    x ^= swap ^ (swap << step);
  }
  return x;
}

FASTGEN_INLINE uint64_t merge_even_odd(uint64_t x) {
  for (int step = 16; step > 0; step /= 2) {
    constexpr uint64_t kMiddle[] = {0x2222222222222222u, 0x0C0C0C0C0C0C0C0Cu, 0x00F000F000F000F0u,
                                    0x0000FF000000FF00u, 0x00000000FFFF0000u};
    const uint64_t swap = (x ^ (x >> step)) & kMiddle[__builtin_ctz(step)];
    x ^= swap ^ (swap << step);
  }
  return x;
}

struct ByteTable {
  uint64_t spins[256];  // eight bits as eight spins
  constexpr ByteTable() : spins{} {
    for (uint64_t byte = 0; byte < 256; ++byte)
      for (int bit = 0; bit < 8; ++bit) spins[byte] |= (byte >> bit & 1 ? 0x01ull : 0xFFull) << (8 * bit);
  }
};
constexpr ByteTable kByteTable;

FASTGEN_INLINE void write_spins(uint64_t up, int8_t* spins) {
#pragma GCC unroll 8
  for (int byte = 0; byte < 8; ++byte)
    memcpy(spins + 8 * byte, &kByteTable.spins[up >> (8 * byte) & 0xFF], 8);
}

}  // namespace

bool ising_pack(const IsingShape& shape, const int8_t* spins, IsingPlanes planes) {
  const int64_t words = shape.words();
  U64 wrong{};
  for (int64_t row = 0; row < shape.height; ++row, spins += shape.width) {
    uint32_t* even = planes.plane[row & 1] + row * words;
    uint32_t* odd = planes.plane[1 - (row & 1)] + row * words;
    for (int64_t w = 0; w < words; ++w) {
      const int64_t left = shape.width - 64 * w;
      int8_t padded[64];
      if (left < 64) {
        memset(padded, -1, sizeof padded);
        memcpy(padded, spins + 64 * w, left);
      }
      const uint64_t split = split_even_odd(up_bits(left < 64 ? padded : spins + 64 * w, wrong));
      even[w] = static_cast<uint32_t>(split);
      odd[w] = static_cast<uint32_t>(split >> 32);
    }
  }
  return !any_bit((U32)wrong);
}

void ising_unpack(const IsingShape& shape, IsingPlanes planes, int8_t* spins) {
  const int64_t words = shape.words();
  for (int64_t row = 0; row < shape.height; ++row, spins += shape.width) {
    const uint32_t* even = planes.plane[row & 1] + row * words;
    const uint32_t* odd = planes.plane[1 - (row & 1)] + row * words;
    for (int64_t w = 0; w < words; ++w) {
      const uint64_t up = merge_even_odd(static_cast<uint64_t>(odd[w]) << 32 | even[w]);
      const int64_t left = shape.width - 64 * w;
      int8_t padded[64];
      write_spins(up, left < 64 ? padded : spins + 64 * w);
      if (left < 64) memcpy(spins + 64 * w, padded, left);
    }
  }
}

void ising_halo(const IsingShape& shape, IsingPlanes planes, int colour) {
  const int64_t words = shape.words(), bytes = words * sizeof(uint32_t), end = shape.height * words;
  uint32_t* plane = planes.plane[colour];
  if (shape.periodic) {
    memcpy(plane - words, plane + end - words, bytes);
    memcpy(plane + end, plane, bytes);
  } else {
    memset(plane - words, 0, bytes);
    memset(plane + end, 0, bytes);
  }
}

// Each bond joins the two colours, so the neighbours of the sites of colour 0 are all bonds, once.
IsingSums ising_observe(const IsingShape& shape, IsingPlanes planes, int64_t first_row, int64_t last_row) {
  const int64_t words = shape.words();
  IsingSums sums;
  for (int64_t r = first_row; r < last_row; ++r) {
    const IsingRow row(shape, planes, 0, r);
    const uint32_t* own = planes.plane[0] + r * words;
    for (int64_t w = 0; w < words; ++w) {
      const uint32_t s = own[w], valid = row.valid(w);
      uint32_t side;
      row.side(w, w + 1, &side);
      sums.up += __builtin_popcount(s) + __builtin_popcount(row.other[w]);
      sums.unequal += __builtin_popcount((s ^ row.other[w - words]) & valid & ~row.missing_up());
      sums.unequal += __builtin_popcount((s ^ row.other[w + words]) & valid & ~row.missing_down());
      sums.unequal += __builtin_popcount((s ^ row.other[w]) & valid & ~row.missing_same(w));
      sums.unequal += __builtin_popcount((s ^ side) & valid & ~row.missing_side(w));
    }
  }
  return sums;
}

}  // namespace fastgen::FASTGEN_ISA
