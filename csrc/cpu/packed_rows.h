// Integer weights times a few rows, straight from the blocks: four outputs and four blocks at a time, whose
// 16 sums are the lanes of what is added up.
#pragma once
#include "packed_words.h"

namespace fastgen::FASTGEN_ISA {

constexpr int kQuad = 4;     // outputs at a time
constexpr int kFewRows = 4;  // rows up to which unpacking a panel first does not pay

// Lane (block, output) of the result: the sum of the four lanes of that block in t[output].
FASTGEN_INLINE I32 fold(const I32 (&t)[kQuad]) {
  const I32 a = first_halves(t[0], t[1]) + second_halves(t[0], t[1]);
  const I32 b = first_halves(t[2], t[3]) + second_halves(t[2], t[3]);
  return (I32)even_lanes((F32)a, (F32)b) + (I32)odd_lanes((F32)a, (F32)b);
}

// Scales and least values of kBlocks blocks of four outputs; `at(o)` is the first of the blocks.
template <WeightFormat format, class At>
FASTGEN_INLINE void load_heads(At at, F32& d, F32& m) {
  using L = BlockLayout<format>;
  d = all<F32>(1), m = F32{};
  if constexpr (!L::kHasScale) return;
#if defined(__AVX512F__)
  const auto widen = [](__m512i words) { return (F32)_mm512_cvtph_ps(_mm512_cvtepi32_epi16(words)); };
  if constexpr (L::kNibbles) {  // all four heads are in the first 64 bytes
    const I32 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const __m512i from = (__m512i)((lane >> 2) * (L::kHasMin ? 5 : 9));
    __m512i heads = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int o = 0; o < kQuad; ++o) {
      const __m512i some = _mm512_loadu_si512(at(o));
      heads = L::kHasMin
                  ? _mm512_mask_permutexvar_epi32(heads, static_cast<__mmask16>(0x1111 << o), from, some)
                  : _mm512_mask_permutexvar_epi16(heads, 0x01010101u << (2 * o), from, some);
    }
    d = widen(heads);
    if constexpr (L::kHasMin) m = widen(_mm512_srli_epi32(heads, 16));
    return;
  }
#endif
#pragma GCC unroll 16
  for (int i = 0; i < kLanes32; ++i) {
    const uint8_t* head = at(i % kQuad) + i / kQuad * L::kSize;
    d[i] = half_at(head);
    if constexpr (L::kHasMin) m[i] = half_at(head + 2);
  }
}

// Adds four blocks of four outputs, times each of R rows. `at(o)` is where the blocks of an output are.
template <WeightFormat format, int R, bool kVnni, class At>
FASTGEN_INLINE void add_group(At at, const QuantizedGroup* x, int64_t x_stride, F32 (&acc)[R][kParts]) {
  using L = BlockLayout<format>;
#pragma GCC unroll 4
  for (int v = 0; v < kParts; ++v) {
    const int first = v * kBlocks;  // block
    I32 t[R][kQuad] = {};
#pragma GCC unroll 4
    for (int o = 0; o < kQuad; ++o) {
      const uint8_t* values = at(o) + first * L::kSize + L::kHead;
      I16 words[4];
      const auto block = [values](int i) { return values + i * L::kSize; };
      if constexpr (L::kNibbles)
        widen_nibbles(load_lanes(block), words);
      else
        widen_bytes((I16)load_lanes(block), (I16)load_lanes([&](int i) { return block(i) + 16; }), words);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int s = 0; s < 4; ++s)
          t[r][o] = add_pairs<kVnni>(t[r][o], (I32)words[s], load<I32>(x[r * x_stride].q[s][first]));
    }
    F32 d, m;
    load_heads<format>([&](int o) { return at(o) + first * L::kSize; }, d, m);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const QuantizedGroup& group = x[r * x_stride];
      I32 sum = fold(t[r]);
      if constexpr (L::kMinusEight) sum -= load<I32>(group.eight_sums[first]);
      const F32 scale = d * load<F32>(group.scale[first]);
      acc[r][v] = multiply_add(__builtin_convertvector(sum, F32), scale, acc[r][v]);
      if constexpr (L::kHasMin) acc[r][v] = multiply_add(m, load<F32>(group.scaled_sum[first]), acc[r][v]);
    }
  }
}

// The four sums of each output, added: to[output].
FASTGEN_INLINE void add_blocks_up(const F32 (&acc)[kParts], float* to) {
  float lanes[kBlockGroup][kQuad];
  memcpy(lanes, acc, sizeof lanes);
  for (int o = 0; o < kQuad; ++o) to[o] = ((lanes[0][o] + lanes[2][o]) + (lanes[1][o] + lanes[3][o])) + 0.0f;
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
    F32 acc[R][kParts] = {};
    for (int64_t g = 0; g < whole; ++g)
      add_group<format, R, kVnni>([&](int o) { return blocks[o] + g * kGroupBytes; }, x + g, groups, acc);
    if (rest > 0) {
      uint8_t some[kQuad][kGroupBytes] = {};
      for (int o = 0; o < kQuad; ++o) memcpy(some[o], blocks[o] + whole * kGroupBytes, rest);
      add_group<format, R, kVnni>([&](int o) { return some[o]; }, x + whole, groups, acc);
    }
    for (int r = 0; r < R; ++r) {
      float sums[kQuad];
      add_blocks_up(acc[r], sums);
      for (int o = 0; o < count; ++o)
        task.y[(row + r) * task.y_stride + output + o] =
            L::kHasScale ? sums[o] : sums[o] * task.weight_scale[output + o];
    }
  }
}

}  // namespace fastgen::FASTGEN_ISA
