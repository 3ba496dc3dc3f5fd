// Integer weights times many rows: a panel of 16 outputs is unpacked into pairs of 16-bit integers, lanes
// along the outputs, and multiplied with all rows. Sums of integers are exact, so the bits are those of
// packed_rows.h.
#pragma once
#include "ahead.h"
#include "packed_rows.h"

namespace fastgen::FASTGEN_ISA {

#if defined(__AVX512F__)
constexpr int kTileRows = 12;
#else
constexpr int kTileRows = 4;
#endif

// Number d of each block of 128 bits of z[0], z[1], z[2], z[3].
FASTGEN_INLINE void transpose_quads(const U16 (&z)[4], U32 (&columns)[4]) {
  const F32 even01 = even_lanes((F32)z[0], (F32)z[1]), odd01 = odd_lanes((F32)z[0], (F32)z[1]);
  const F32 even23 = even_lanes((F32)z[2], (F32)z[3]), odd23 = odd_lanes((F32)z[2], (F32)z[3]);
  columns[0] = (U32)even_lanes(even01, even23);
  columns[1] = (U32)even_lanes(odd01, odd23);
  columns[2] = (U32)odd_lanes(even01, even23);
  columns[3] = (U32)odd_lanes(odd01, odd23);
}

// One block of 16 outputs; `at(o)` is where it is.
template <WeightFormat format, class At>
FASTGEN_INLINE void unpack_block(At at, PanelBlock& to) {
  using L = BlockLayout<format>;
  for (int v = 0; v < kParts; ++v) {
    constexpr int kHalves = L::kNibbles ? 1 : 2;
    U32 columns[kHalves][4];
    for (int half = 0; half < kHalves; ++half) {
      U16 z[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
        z[i] = load_lanes([&](int lane) { return at((v * kBlocks + lane) * 4 + i) + L::kHead + half * 16; });
      transpose_quads(z, columns[half]);
    }
#pragma GCC unroll 4
    for (int d = 0; d < 4; ++d) {
      I16 words[4];
      if constexpr (L::kNibbles)
        widen_nibbles((U16)columns[0][d], words);
      else
        widen_bytes((I16)columns[0][d], (I16)columns[kHalves - 1][d], words);
#pragma GCC unroll 4
      for (int s = 0; s < 4; ++s)
        store(to.pairs[s][d] + v * kLanes32, L::kMinusEight ? words[s] - 8 : words[s]);
    }
  }
  uint32_t heads[kPanel] = {};
  for (int o = 0; o < kPanel; ++o) memcpy(heads + o, at(o), L::kHead);
#pragma GCC unroll 4
  for (int v = 0; v < kPanel; v += kLanes32) {
    const U32 head = load<U32>(heads + v);
    store(to.scale + v, widen_halves(head & 0xFFFFu));
    if constexpr (L::kHasMin) store(to.least + v, widen_halves(head >> 16));
  }
}

template <WeightFormat format>
static void unpack_panel(const PackedLinear& task, int64_t panel, int64_t blocks, PanelBlock* to) {
  using L = BlockLayout<format>;
  const int64_t stride = weight_stride(format, task.inputs), first = panel * kPanel;
  const uint8_t* rows[kPanel];
  spread_rows(static_cast<const uint8_t*>(task.weight) + first * stride, stride, task.outputs - first, rows);
  for (int64_t b = 0; b < blocks; ++b)
    unpack_block<format>([&](int64_t o) { return rows[o] + b * L::kSize; }, to[b]);
}

// R rows by a panel: sums to y.
template <int R, bool kHasMin, bool kVnni>
static void integer_tile(const QuantizedGroup* x, int64_t x_stride, const PanelBlock* panel, int64_t blocks,
                         float* y, int64_t y_stride, int64_t outputs, Ahead& ahead) {
  F32 acc[kBlockGroup][R][kParts] = {};
  for (int64_t b = 0; b < blocks; ++b) {
    const QuantizedGroup* group = x + b / kBlockGroup;
    const int64_t c = b % kBlockGroup;
    const PanelBlock& block = panel[b];
    ahead.step();
    I32 sum[R][kParts] = {};
    for (int s = 0; s < 4; ++s)
#pragma GCC unroll 4
      for (int d = 0; d < 4; ++d) {
        I32 w[kParts];
#pragma GCC unroll 4
        for (int v = 0; v < kParts; ++v) w[v] = load<I32>(block.pairs[s][d] + v * kLanes32);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          int32_t pair;
          memcpy(&pair, &group[r * x_stride].q[s][c][2 * d], 4);
          const I32 one = pair - I32{};
#pragma GCC unroll 4
          for (int v = 0; v < kParts; ++v) sum[r][v] = add_pairs<kVnni>(sum[r][v], w[v], one);
        }
      }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kParts; ++v) {
        const QuantizedGroup& row = group[r * x_stride];
        const F32 scale = load<F32>(block.scale + v * kLanes32) * in_all_lanes(row.scale[c][0]);
        F32 a = multiply_add(__builtin_convertvector(sum[r][v], F32), scale, acc[c][r][v]);
        if constexpr (kHasMin)
          a = multiply_add(load<F32>(block.least + v * kLanes32), in_all_lanes(row.scaled_sum[c][0]), a);
        acc[c][r][v] = a;
      }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < kParts; ++v) {
      const int64_t first = v * kLanes32, left = std::min<int64_t>(outputs - first, kLanes32);
      if (left <= 0) break;
      const F32 total = ((acc[0][r][v] + acc[2][r][v]) + (acc[1][r][v] + acc[3][r][v])) + F32{};
      store_first(y + r * y_stride + first, total, left);
    }
}

template <WeightFormat format, bool kVnni, int... R>
static void integer_panel(const PackedLinear& task, int64_t first_row, int64_t last_row, int64_t panel,
                          const PanelBlock* blocks, int64_t count, std::integer_sequence<int, R...>) {
  using Tile =
      void (*)(const QuantizedGroup*, int64_t, const PanelBlock*, int64_t, float*, int64_t, int64_t, Ahead&);
  static constexpr Tile kTiles[] = {integer_tile<R + 1, format == WeightFormat::q4_1, kVnni>...};
  const int64_t rows = last_row - first_row, tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t groups = quantized_groups(task.inputs), output = panel * kPanel;
  const int64_t stride = weight_stride(format, task.inputs), next = std::min(output + kPanel, task.outputs);
  Ahead ahead(static_cast<const uint8_t*>(task.weight) + next * stride,
              (std::min(next + kPanel, task.outputs) - next) * stride, tiles * count);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t begin = rows * t / tiles, end = rows * (t + 1) / tiles, row = first_row + begin;
    kTiles[end - begin - 1](task.quantized + row * groups, groups, blocks, count,
                            task.y + row * task.y_stride + output, task.y_stride, task.outputs - output,
                            ahead);
  }
}

template <WeightFormat format, bool kVnni>
static void integer_block(const PackedLinear& task, int64_t first_row, int64_t last_row, int64_t first,
                          int64_t last) {
  const int64_t rows = last_row - first_row, end = std::min(last * kPanel, task.outputs);
  if (rows <= kFewRows) {
    using Rows = void (*)(const PackedLinear&, int64_t, int64_t, int64_t);
    static constexpr Rows kRows[] = {few_rows<format, 1, kVnni>, few_rows<format, 2, kVnni>,
                                     few_rows<format, 3, kVnni>, few_rows<format, 4, kVnni>};
    return kRows[rows - 1](task, first_row, first * kPanel, end);
  }
  const int64_t count = byte_blocks(task.inputs);
  for (int64_t p = first; p < last; ++p) {
    unpack_panel<format>(task, p, count, task.unpacked);
    integer_panel<format, kVnni>(task, first_row, last_row, p, task.unpacked, count,
                                 std::make_integer_sequence<int, kTileRows>());
  }
}

}  // namespace fastgen::FASTGEN_ISA
