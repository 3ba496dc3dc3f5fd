// Sums of a block of outputs over the inputs that are on, in one fixed order whatever path is taken:
// inputs in groups of four, (w0 + w1) + (w2 + w3) with +0 for an input that is off, groups added in order to
// an accumulator that starts at the bias.
#pragma once
#include <utility>

#include "rbm_lists.h"

namespace fastgen::FASTGEN_ISA {

// The sums of a block, as vectors of V: F32, or Narrow where the block ends before its lane 4.
template <class V>
struct SumsOf {
  V v[kVectors];
};
using Sums = SumsOf<F32>;

// Vector k of a row of weights.
template <class V = F32>
FASTGEN_INLINE V load_weights(const float* row, int k) {
  return load<V>(row + k * kLanes32);
}

template <class V = F32>
FASTGEN_INLINE V load_weights(const uint16_t* row, int k) {  // a bfloat16 is the upper half of a float32
  using Words = decltype(V{} == V{});                        // as wide, of int32
  const Words pairs = load<Words>(row + k / 2 * 2 * kLanes32);
  return (V)(k % 2 ? pairs & ~0xFFFF : pairs << 16);
}

template <class V = F32>
FASTGEN_INLINE SumsOf<V> load_sums(const float* p) {
  SumsOf<V> sums;
  for (int k = 0; k < kVectors; ++k) sums.v[k] = load<V>(p + k * kLanes32);
  return sums;
}

template <class V>
FASTGEN_INLINE void store_sums(float* p, const SumsOf<V>& sums) {
  for (int k = 0; k < kVectors; ++k) store(p + k * kLanes32, sums.v[k]);
}

constexpr int kTableFloats = kGroups * 16 * kWidth;  // all 16 sums of each group

// The partial sums of each group of a word of inputs; a group that is off is never looked up.
template <class V, class T>
__attribute__((noinline)) static void build_tables(const T* rows, float* table) {
  for (int g = 0; g < kGroups; ++g, rows += 4 * kWidth, table += 16 * kWidth) {
#pragma GCC unroll 8
    for (int k = 0; k < kVectors; ++k) {
      const V w0 = load_weights<V>(rows, k), w1 = load_weights<V>(rows + kWidth, k);
      const V w2 = load_weights<V>(rows + 2 * kWidth, k), w3 = load_weights<V>(rows + 3 * kWidth, k);
      const V zero{}, low[4] = {zero, w0, w1, w0 + w1}, high[4] = {zero, w2, w3, w2 + w3};
#pragma GCC unroll 16
      for (int n = 1; n < 16; ++n) {
        const V sum = n < 4 ? low[n] : n % 4 == 0 ? high[n / 4] : low[n % 4] + high[n / 4];
        store(table + n * kWidth + k * kLanes32, sum);
      }
    }
  }
}

// Weights that are fetched while others are added: a line at a time, what is too much for that at once.
struct Fetching {
  const char *next, *end;

  Fetching(const void* first, int64_t bytes, int64_t times)
      : next(static_cast<const char*>(first)), end(next + bytes) {
    for (; end - next > 64 * times; next += 64) __builtin_prefetch(next);
  }

  FASTGEN_MEMBER void line() {
    if (next < end) __builtin_prefetch(next);
    next += 64;
  }
};

// Adds a word of inputs to the sums of `count` chains that have N groups on.
template <class V, int N>
FASTGEN_INLINE void add_groups(const uint32_t* chains, int64_t count, const uint64_t* rows,
                               const float* table, const float* bias, float* places, Fetching& fetching) {
  for (int64_t i = 0; i < count; ++i) {
    const size_t chain = chains[i];
    const uint64_t row = rows[chain];
    float* place = places + chain * kWidth;
    fetching.line();
    SumsOf<V> sums = load_sums<V>(bias ? bias : place);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const float* partial = table + static_cast<size_t>(row >> (8 * n) & 0xFF) * kWidth;
#pragma GCC unroll 8
      for (int k = 0; k < kVectors; ++k) sums.v[k] += load<V>(partial + k * kLanes32);
    }
    store_sums(place, sums);
  }
}

// Adds one word of inputs to the sums of a tile of chains, which start at `bias` if that is there. A function
// of its own, so that the sums have all registers.
template <class V>
__attribute__((noinline)) static void add_word(const WordLists& lists, const float* table, const float* bias,
                                               float* places, Fetching fetching) {
  const auto add = [&]<int N>(uint32_t first, uint32_t end) {
    add_groups<V, N>(lists.order + first, end - first, lists.rows, table, bias, places, fetching);
  };
  if (bias) add.template operator()<0>(0, lists.ends[0]);
  [&]<int... N>(std::integer_sequence<int, N...>) {
    (add.template operator()<N + 1>(lists.ends[N], lists.ends[N + 1]), ...);
  }(std::make_integer_sequence<int, kGroups>());
}

constexpr int64_t kAhead = 8;  // groups between the prefetch of a row and its use

// The four rows that a group with some input on adds, as row numbers; an input that is off names the zero
// row.
struct GroupRows {
  uint32_t row[4];
};

FASTGEN_INLINE int64_t list_groups(const uint32_t* words, int64_t stride, int64_t count, uint32_t zero_row,
                                   GroupRows* list) {
  int64_t n = 0;
  for (int64_t w = 0; w < count; ++w) {
    const uint32_t bits = words[w * stride];
    for (uint32_t g = 0; g < kGroups; ++g) {
      const uint32_t first = static_cast<uint32_t>(32 * w) + 4 * g;
      for (uint32_t i = 0; i < 4; ++i) list[n].row[i] = bits >> (4 * g + i) & 1 ? first + i : zero_row;
      n += (bits >> (4 * g) & 15) != 0;
    }
  }
  for (int64_t i = 0; i < kAhead; ++i) list[n + i] = {{zero_row, zero_row, zero_row, zero_row}};
  return n;
}

template <class T>
FASTGEN_INLINE const T* row_of(const T* block, uint32_t row) {
  return block + static_cast<size_t>(row) * kWidth;
}

template <class T>
FASTGEN_INLINE void fetch_rows(const GroupRows& rows, const T* block) {
  for (uint32_t row : rows.row)
    for (int i = 0; i < kWidth; i += 64 / static_cast<int>(sizeof(T)))
      __builtin_prefetch(row_of(block, row) + i);
}

// Adding +0 changes no sum that is compared with anything, so groups that are off may be left out. The list
// is followed by kAhead groups of zero rows.
template <class T>
FASTGEN_INLINE void add_rows(Sums& sums, const GroupRows* list, int64_t count, const T* block) {
  for (int64_t n = 0; n < count; ++n) {
    fetch_rows(list[n + kAhead], block);
    const uint32_t* row = list[n].row;
    const T *r0 = row_of(block, row[0]), *r1 = row_of(block, row[1]);
    const T *r2 = row_of(block, row[2]), *r3 = row_of(block, row[3]);
#pragma GCC unroll 8
    for (int k = 0; k < kVectors; ++k)
      sums.v[k] += (load_weights(r0, k) + load_weights(r1, k)) + (load_weights(r2, k) + load_weights(r3, k));
  }
}

}  // namespace fastgen::FASTGEN_ISA
