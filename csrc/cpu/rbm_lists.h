// Which groups of four inputs are on, chain by chain: sums leave out the others, so that what a half step
// takes falls with the number of units that are on.
#pragma once
#include "rbm_layout.h"

namespace fastgen::FASTGEN_ISA {

constexpr int kGroups = 8;            // groups of four inputs in a word of bits
constexpr int64_t kTileChains = 512;  // chains that share tables; their sums stay in the second cache

// For a word of inputs of the chains of a tile: which groups each has on, and the chains by how many that
// are, so that each number has a loop of its own, without a branch that nobody can foresee.
struct WordLists {
  uint64_t* rows;   // of each chain: byte i is 16 g + its bits, g the i-th group that is on
  uint32_t* order;  // chains, counted from the first of the tile
  uint32_t* ends;   // in `order`, of the chains with n groups on, n = 0 to kGroups
};

// The bytes of WordLists::rows for some bits; `count` says how many are meant.
FASTGEN_INLINE uint64_t groups_on(uint32_t bits, int& count) {
  static constexpr LaneLists kLists;
  typedef uint8_t Bytes __attribute__((vector_size(16)));
  uint64_t group = bits;
  group = (group | group << 16) & 0x0000FFFF0000FFFFu;
  group = (group | group << 8) & 0x00FF00FF00FF00FFu;
  group = (group | group << 4) & 0x0F0F0F0F0F0F0F0Fu;
  const uint64_t on = (group + 0x0F0F0F0F0F0F0F0Fu) >> 4 & 0x0101010101010101u;
  const uint32_t which = on * 0x0102040810204080u >> 56;
  typedef uint64_t Pair __attribute__((vector_size(16)));
  uint64_t list;
  memcpy(&list, kLists.lane[which], sizeof list);
  const Bytes rows = (Bytes)Pair{group | 0x7060504030201000u, 0};
  count = __builtin_popcount(which);
  return ((Pair)__builtin_shuffle(rows, (Bytes)Pair{list, 0}))[0];
}

__attribute__((noinline)) static void list_word(const uint32_t* bits, int64_t chains,
                                                const WordLists& lists) {
  uint32_t next[kGroups + 1] = {};
  uint8_t counts[kTileChains];
  for (int64_t c = 0; c < chains; ++c) {
    int count;
    lists.rows[c] = groups_on(bits[c], count);
    counts[c] = static_cast<uint8_t>(count);
    ++next[count];
  }
  uint32_t sum = 0;
  for (int n = 0; n <= kGroups; ++n) {
    const uint32_t of_n = next[n];
    next[n] = sum;
    lists.ends[n] = sum += of_n;
  }
  for (int64_t c = 0; c < chains; ++c) lists.order[next[counts[c]]++] = static_cast<uint32_t>(c);
}

}  // namespace fastgen::FASTGEN_ISA
