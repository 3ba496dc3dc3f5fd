// Integer weights times a few rows, straight from the blocks: four outputs and four blocks at a time, whose
// 16 sums are the lanes of what is added up.
#pragma once
#include "packed_groups.h"

namespace fastgen::FASTGEN_ISA {

constexpr int64_t kAhead = 3072;  // bytes of weights that are on their way from memory
constexpr int kFewRows = 4;       // rows up to which unpacking a panel first does not pay

// Lane (block, output) of the result: the sum of the four lanes of that block in t[output].
FASTGEN_INLINE I32 fold(const I32 (&t)[kQuad]) {
  const I32 a = first_halves(t[0], t[1]) + second_halves(t[0], t[1]);
  const I32 b = first_halves(t[2], t[3]) + second_halves(t[2], t[3]);
  return (I32)even_lanes((F32)a, (F32)b) + (I32)odd_lanes((F32)a, (F32)b);
}

// Adds the blocks of four outputs that vectors `v` hold, times each of R rows.
template <WeightFormat format, int R, bool kVnni, bool kWhole>
FASTGEN_INLINE void add_blocks_of(const uint8_t* const (&at)[kQuad], int64_t bytes, int v,
                                  const QuantizedGroup* x, int64_t x_stride, F32 (&acc)[R][kParts]) {
  using L = BlockLayout<format>;
  const int first = v * kBlocks;  // block
  Group<format> groups[kQuad];
  I32 t[R][kQuad] = {};
#pragma GCC unroll 4
  for (int o = 0; o < kQuad; ++o) {
    groups[o] = Group<format>::template read<kWhole>(at[o], bytes);
    I16 words[4];
    Group<format>::widen(groups[o], words);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int s = 0; s < 4; ++s)
        t[r][o] = add_pairs<kVnni>(t[r][o], (I32)words[s], load<I32>(x[r * x_stride].q[s][first]));
  }
  F32 d{}, m{};
  Group<format>::scales(groups, d, m);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    const QuantizedGroup& group = x[r * x_stride];
    I32 sum = fold(t[r]);
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

// The four sums of each output, added: to[output].
FASTGEN_INLINE void add_blocks_up(const F32 (&acc)[kParts], float* to) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const __m256 low = _mm512_castps512_ps256((__m512)acc[0]), high = _mm512_extractf32x8_ps((__m512)acc[0], 1);
#else
  const __m256 low = (__m256)acc[0], high = (__m256)acc[1];
#endif
  const __m256 pairs = _mm256_add_ps(low, high);  // blocks 0 and 2, 1 and 3
  const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
  _mm_storeu_ps(to, _mm_add_ps(sums, _mm_setzero_ps()));
#else
  store(to, ((acc[0] + acc[2]) + (acc[1] + acc[3])) + F32{});
#endif
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
    for (int r = 0; r < R; ++r) {
      float sums[kQuad];
      add_blocks_up(acc[r], sums);
      for (int o = 0; o < count; ++o) task.y[(row + r) * task.y_stride + output + o] = sums[o];
    }
  }
}

}  // namespace fastgen::FASTGEN_ISA
