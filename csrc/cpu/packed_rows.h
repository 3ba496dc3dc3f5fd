// Integer weights times a few rows, straight from the blocks: four outputs and four blocks at a time, whose
// 16 sums are the lanes of what is added up.
#pragma once
#include "packed_groups.h"

namespace fastgen::FASTGEN_ISA {

constexpr int64_t kAhead = 3072;  // bytes of weights that are on their way from memory

// Lane (block, output) of the result: the sum of the four lanes of that block in t[output].
FASTGEN_INLINE I32 fold(const I32 (&t)[kQuad]) {
  const I32 a = first_halves(t[0], t[1]) + second_halves(t[0], t[1]);
  const I32 b = first_halves(t[2], t[3]) + second_halves(t[2], t[3]);
  return (I32)even_lanes((F32)a, (F32)b) + (I32)odd_lanes((F32)a, (F32)b);
}

// Lane (block, output) of sums[r]: blocks times those of row r, from block `first` on.
template <WeightFormat format, int R, bool kVnni>
FASTGEN_INLINE void multiply_words(const Group<format> (&groups)[kQuad], int first, const QuantizedGroup* x,
                                   int64_t x_stride, I32 (&sums)[R]) {
  I32 t[R][kQuad] = {};
#pragma GCC unroll 4
  for (int o = 0; o < kQuad; ++o) {
    I16 words[4];
    Group<format>::widen(groups[o], words);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int s = 0; s < 4; ++s)
        t[r][o] = add_pairs<kVnni>(t[r][o], (I32)words[s], load<I32>(x[r * x_stride].q[s][first]));
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) sums[r] = fold(t[r]);
}

#if defined(__AVX512F__)

// acc + the sums of four products of bytes, the first without sign.
FASTGEN_INLINE I32 add_bytes(I32 acc, I32 plain, I32 signed_bytes) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(plain), "v"(signed_bytes));
  return acc;
}

// The same for weights of 4 bits, in fewer instructions: the high and the low 8 bits of x are multiplied
// apart, whose sums fit in 16 bits, and put together while neighbours are added.
template <WeightFormat format, int R>
FASTGEN_INLINE void multiply_nibbles(const Group<format> (&groups)[kQuad], const QuantizedGroup* x,
                                     int64_t x_stride, I32 (&sums)[R]) {
  U16 upper[kQuad], lower[kQuad];
#pragma GCC unroll 4
  for (int o = 0; o < kQuad; ++o) {
    const U16 both = (U16)Group<format>::words_of(groups[o], BlockLayout<format>::kHead / 2);
    lower[o] = both & 0x0F0F, upper[o] = (both >> 4) & 0x0F0F;
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r, x += x_stride) {
    const I32 low[] = {load<I32>(x->low[0]), load<I32>(x->low[1])};
    const I32 high[] = {load<I32>(x->high[0]), load<I32>(x->high[1])};
    __m512i l[kQuad], h[kQuad];
#pragma GCC unroll 4
    for (int o = 0; o < kQuad; ++o) {
      l[o] = (__m512i)add_bytes(add_bytes(I32{}, low[0], (I32)lower[o]), low[1], (I32)upper[o]);
      h[o] = (__m512i)add_bytes(add_bytes(I32{}, (I32)lower[o], high[0]), (I32)upper[o], high[1]);
    }
    const auto pairs = [&](int o) __attribute__((always_inline)) {
      const I32 of_low = (I32)_mm512_packs_epi32(l[o], l[o + 1]);
      const I32 of_high = (I32)_mm512_packs_epi32(h[o], h[o + 1]);
      const I32 ones = (I32)(I16{} + 1), weights = (I32)(I16{} + 256);
      return (F32)add_pairs<true>(add_pairs<true>(I32{}, of_low, ones), of_high, weights);
    };
    const F32 first = pairs(0), second = pairs(2);
    sums[r] = (I32)even_lanes(first, second) + (I32)odd_lanes(first, second);
  }
}

#else

template <WeightFormat format, int R>
FASTGEN_INLINE void multiply_nibbles(const Group<format> (&)[kQuad], const QuantizedGroup*, int64_t,
                                     I32 (&)[R]) {}

#endif

// Adds the blocks of four outputs that vectors `v` hold, times each of R rows.
template <WeightFormat format, int R, bool kVnni, bool kWhole>
FASTGEN_INLINE void add_blocks_of(const uint8_t* const (&at)[kQuad], int64_t bytes, int v,
                                  const QuantizedGroup* x, int64_t x_stride, F32 (&acc)[R][kParts]) {
  using L = BlockLayout<format>;
  const int first = v * kBlocks;  // block
  Group<format> groups[kQuad];
#pragma GCC unroll 4
  for (int o = 0; o < kQuad; ++o) groups[o] = Group<format>::template read<kWhole>(at[o], bytes);
  I32 sums[R];
  if constexpr (kVnni && L::kNibbles)
    multiply_nibbles<format, R>(groups, x, x_stride, sums);
  else
    multiply_words<format, R, kVnni>(groups, first, x, x_stride, sums);
  F32 d{}, m{};
  Group<format>::scales(groups, d, m);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    const QuantizedGroup& group = x[r * x_stride];
    I32 sum = sums[r];
    if constexpr (L::kMinusEight) sum -= load<I32>(group.eight_sums[first]);
    const F32 scale = load<F32>(group.scale[first]) * d;
    acc[r][v] = multiply_add(__builtin_convertvector(sum, F32), scale, acc[r][v]);
    if constexpr (L::kHasMin) acc[r][v] = multiply_add(m, load<F32>(group.scaled_sum[first]), acc[r][v]);
  }
}

// The same for a whole group of blocks, or for the `bytes` that are left of it.
template <WeightFormat format, int R, bool kVnni, bool kWhole>
FASTGEN_INLINE void add_group(const uint8_t* const (&at)[kQuad], int64_t bytes, const QuantizedGroup* x,
                              int64_t x_stride, F32 (&acc)[R][kParts]) {
  constexpr int kPart = kBlocks * BlockLayout<format>::kSize;
#pragma GCC unroll 4
  for (int v = 0; v < kParts; ++v) {
    const int64_t left = bytes - v * kPart;
    if (!kWhole && left <= 0) return;
    const uint8_t* part[kQuad];
#pragma GCC unroll 4
    for (int o = 0; o < kQuad; ++o) part[o] = at[o] + v * kPart;
    if (kWhole || kBytes == 64 || left >= kPart) {
      add_blocks_of<format, R, kVnni, kWhole>(part, bytes, v, x, x_stride, acc);
      continue;
    }
    uint8_t some[kQuad][kPart] = {};
    for (int o = 0; o < kQuad; ++o) memcpy(some[o], part[o], left), part[o] = some[o];
    add_blocks_of<format, R, kVnni, kWhole>(part, bytes, v, x, x_stride, acc);
  }
}

// The four sums of each output, added: to[output] of the first `count` of them.
FASTGEN_INLINE void add_blocks_up(const F32 (&acc)[kParts], float* to, int64_t count) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const __m256 low = _mm512_castps512_ps256((__m512)acc[0]), high = _mm512_extractf32x8_ps((__m512)acc[0], 1);
#else
  const __m256 low = (__m256)acc[0], high = (__m256)acc[1];
#endif
  const __m256 pairs = _mm256_add_ps(low, high);  // blocks 0 and 2, 1 and 3
  const __m128 halves = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
  const __m128 sums = _mm_add_ps(halves, _mm_setzero_ps());
#else
  const F32 sums = ((acc[0] + acc[2]) + (acc[1] + acc[3])) + F32{};
#endif
  if (count == kQuad)
    memcpy(to, &sums, sizeof sums);
  else
    for (int o = 0; o < count; ++o) to[o] = sums[o];
}

// R rows by outputs first .. last - 1.
template <WeightFormat format, int R, bool kVnni>
static void few_rows(const PackedLinear& task, int64_t row, int64_t first, int64_t last) {
  using L = BlockLayout<format>;
  constexpr int kGroupBytes = kBlockGroup * L::kSize;
  const int64_t stride = weight_stride(format, task.inputs), groups = quantized_groups(task.inputs);
  const int64_t whole = stride / kGroupBytes, rest = stride % kGroupBytes;
  const QuantizedGroup* x = task.quantized + row * groups;
  for (int64_t output = first; output < last; output += kQuad) {
    const int64_t count = std::min<int64_t>(last - output, kQuad);
    const uint8_t* blocks[kQuad];
    spread_rows(static_cast<const uint8_t*>(task.weight) + output * stride, stride, count, blocks);
    const uint8_t* ahead = blocks[0] + kAhead;
    F32 acc[R][kParts] = {};
    for (int64_t g = 0; g < whole; ++g) {
      add_group<format, R, kVnni, true>(blocks, kGroupBytes, x + g, groups, acc);
#pragma GCC unroll 4
      for (int o = 0; o < kQuad; ++o) blocks[o] += kGroupBytes;
      // The rows of a quad are read side by side, which the processor does not foresee; as a whole they are
      // one stretch of memory.
#pragma GCC unroll 16
      for (int i = 0; i < kQuad * kGroupBytes; i += 64) __builtin_prefetch(ahead + i);
      ahead += kQuad * kGroupBytes;
    }
    for (int64_t i = 0; i < kQuad * rest; i += 64) __builtin_prefetch(ahead + i);
    if (rest > 0) add_group<format, R, kVnni, false>(blocks, rest, x + whole, groups, acc);
    for (int r = 0; r < R; ++r) add_blocks_up(acc[r], task.y + (row + r) * task.y_stride + output, count);
  }
}

}  // namespace fastgen::FASTGEN_ISA
