// int8 weights times rows of x in 8 bits: panels of 16 outputs, four inputs of each in a lane. Sums inside a
// block of 32 inputs are exact, and the blocks of an output are one chain of FMAs in order.
#pragma once
#include "ahead.h"
#include "packed_quantize.h"

namespace fastgen::FASTGEN_ISA {

// x in 8 bits, block after block, its last one filled up with zeros.
static void round_row(const float* x, int64_t inputs, ByteBlock* to) {
  for (int64_t k = 0; k < inputs; k += kWeightBlock, ++to) {
    float some[kWeightBlock] = {};
    const int64_t left = inputs - k;
    if (left < kWeightBlock) memcpy(some, x + k, left * sizeof *x);
    I8 q[4];
    to->scale = nearest_integers<127>(left < kWeightBlock ? some : x + k, q);
    to->offset = -128 * sum_of_lanes((q[0] + q[1]) + (q[2] + q[3]));
    for (int i = 0; i < 4; ++i) {
      const B8 eight = __builtin_convertvector(q[i], B8);
      memcpy(to->q + 8 * i, &eight, sizeof eight);
    }
    if (has_vnni()) continue;
    for (int i = 0; i < static_cast<int>(kWeightBlock); ++i) to->words[i % 2][i / 2] = to->q[i];
  }
}

// sum + the products of four weights a lane with quad d of a block of x. With VNNI the weights are 128 more
// than they are, which the block's offset makes good.
template <bool kVnni>
FASTGEN_INLINE I32 add_quads(I32 sum, I32 w, const ByteBlock& x, int d) {
  if constexpr (kVnni) {
#if defined(__AVX512F__)
    // The operand is the memory itself: a copy of it would go through the stack.
    typedef int32_t Quad __attribute__((may_alias));
    asm("vpdpbusd %2%{1to16%}, %1, %0"
        : "+v"(sum)
        : "v"(w), "m"(*reinterpret_cast<const Quad*>(x.q + 4 * d)));
#endif
    return sum;
  }
  const auto pair = [&](int odd) {
    int32_t two;
    memcpy(&two, &x.words[odd][2 * d], 4);
    return two - I32{};
  };
  typedef int16_t I16s __attribute__((vector_size(kBytes)));
  const I16s words = (I16s)w;
  return add_pairs<false>(add_pairs<false>(sum, (I32)(I16s)(words << 8 >> 8), pair(0)),
                          (I32)(I16s)(words >> 8), pair(1));
}

// Block b of each of R rows. Rows are reached from a pointer for each three of them and one stride, so that
// addresses need no arithmetic.
template <int R>
struct BlockRows {
  const char* third[(R + 2) / 3];
  int64_t stride;

  FASTGEN_INLINE BlockRows at(const ByteBlock* x, int64_t blocks, int64_t b) {
    BlockRows rows{{}, blocks * static_cast<int64_t>(sizeof(ByteBlock))};
    for (int i = 0; i < (R + 2) / 3; ++i)
      rows.third[i] = reinterpret_cast<const char*>(x + b) + 3 * i * rows.stride;
    return rows;
  }
  FASTGEN_INLINE const ByteBlock& row(const BlockRows& rows, int r) {
    return *reinterpret_cast<const ByteBlock*>(rows.third[r / 3] + r % 3 * rows.stride);
  }
};

// Adds quad d of a block to the sums of R rows by P panels.
template <int R, int P, bool kVnni>
FASTGEN_INLINE void add_step(const BlockRows<R>& x, const uint8_t* weight, int64_t panel_bytes, int d,
                             I32 (&sum)[R][P][kParts]) {
  I32 w[P][kParts];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < kParts; ++v) {
      w[p][v] = load<I32>(weight + p * panel_bytes + d * 64 + v * kBytes);
      if constexpr (kVnni) w[p][v] ^= static_cast<int32_t>(0x80808080u);
    }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < kParts; ++v)
        sum[r][p][v] = add_quads<kVnni>(sum[r][p][v], w[p][v], BlockRows<R>::row(x, r), d);
}

// Sums of R rows by P panels, to y.
template <int R, int P, bool kVnni>
static void byte_tile(const ByteBlock* x, int64_t blocks, const uint8_t* weight, int64_t panel_bytes,
                      const float* scale, float* y, int64_t y_stride, int64_t outputs, Ahead& ahead) {
  F32 acc[R][P][kParts] = {};
  const int64_t quads = panel_bytes / 64;
  for (int64_t b = 0; b < blocks; ++b) {
    const BlockRows<R> rows = BlockRows<R>::at(x, blocks, b);
    const uint8_t* of_block = weight + b * 8 * 64;
    ahead.step();
    I32 sum[R][P][kParts];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < kParts; ++v)
          sum[r][p][v] = (kVnni ? BlockRows<R>::row(rows, r).offset : 0) - I32{};
    if (quads - b * 8 >= 8)
#pragma GCC unroll 8
      for (int d = 0; d < 8; ++d) add_step<R, P, kVnni>(rows, of_block, panel_bytes, d, sum);
    else
      for (int d = 0; d < quads - b * 8; ++d) add_step<R, P, kVnni>(rows, of_block, panel_bytes, d, sum);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const F32 of_row = in_all_lanes(BlockRows<R>::row(rows, r).scale);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < kParts; ++v)
          acc[r][p][v] = multiply_add(__builtin_convertvector(sum[r][p][v], F32), of_row, acc[r][p][v]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < P; ++p)
      for (int v = 0; v < kParts; ++v) {
        const int64_t first = p * kPanel + v * kLanes32, left = std::min<int64_t>(outputs - first, kLanes32);
        if (left <= 0) break;
        store_first(y + r * y_stride + first, acc[r][p][v] * load_some(scale + first, left), left);
      }
}

#if defined(__AVX512F__)
constexpr int kByteRows = 12;
template <int R>
constexpr int kBytePanels = R == 1   ? 4
                            : R <= 5 ? 2
                                     : 1;
#else
constexpr int kByteRows = 3;
template <int R>
constexpr int kBytePanels = 1;
#endif

// R rows by panels first .. last - 1.
template <int R, bool kVnni>
static void byte_rows(const PackedLinear& task, int64_t row, int64_t first, int64_t last, Ahead& ahead) {
  const int64_t bytes = weight_stride(WeightFormat::int8, task.inputs), blocks = byte_blocks(task.inputs);
  const auto tile = [&](auto panels, int64_t p) {
    byte_tile<R, panels(), kVnni>(task.bytes + row * blocks, blocks,
                                  static_cast<const uint8_t*>(task.weight) + p * bytes, bytes,
                                  task.weight_scale + p * kPanel, task.y + row * task.y_stride + p * kPanel,
                                  task.y_stride, task.outputs - p * kPanel, ahead);
  };
  constexpr int kP = kBytePanels<R>;
  int64_t p = first;
  for (; p + kP <= last; p += kP) tile(std::integral_constant<int, kP>{}, p);
  for (; p < last; ++p) tile(std::integral_constant<int, 1>{}, p);
}

template <bool kVnni, int... R>
static void byte_tiles(const PackedLinear& task, int64_t first_row, int64_t last_row, int64_t first,
                       int64_t last, std::integer_sequence<int, R...>) {
  using Rows = void (*)(const PackedLinear&, int64_t, int64_t, int64_t, Ahead&);
  static constexpr Rows kRows[] = {byte_rows<R + 1, kVnni>...};
  const int64_t rows = last_row - first_row, tiles = (rows + kByteRows - 1) / kByteRows;
  const int64_t panel = weight_stride(WeightFormat::int8, task.inputs), blocks = byte_blocks(task.inputs);
  for (int64_t p = first, end; p < last; p = end) {  // panels that stay in the second cache for all rows
    end = std::min(p + 4, last);
    const int64_t after = std::min(end + 4, task.panels()) - end;
    Ahead ahead(static_cast<const char*>(task.weight) + end * panel, after * panel,
                tiles * blocks * (end - p));
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t begin = rows * t / tiles, count = rows * (t + 1) / tiles - begin;
      kRows[count - 1](task, first_row + begin, p, end, ahead);
    }
  }
}

template <bool kVnni>
static void byte_block(const PackedLinear& task, int64_t first_row, int64_t last_row, int64_t first,
                       int64_t last) {
  byte_tiles<kVnni>(task, first_row, last_row, first, last, std::make_integer_sequence<int, kByteRows>());
}

}  // namespace fastgen::FASTGEN_ISA
