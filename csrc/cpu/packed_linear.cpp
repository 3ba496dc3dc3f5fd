#include "packed_linear.h"

#include "activation.h"
#include "packed_bytes.h"
#include "packed_float.h"
#include "packed_quantize.h"
#include "packed_tiles.h"

namespace fastgen::FASTGEN_ISA {
namespace {

using Block = void (*)(const PackedLinear&, int64_t, int64_t, int64_t, int64_t);

template <bool kVnni>
Block block_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::float32:
      return float_block<float>;
    case WeightFormat::bfloat16:
      return float_block<BFloat16>;
    case WeightFormat::int8:
      return byte_block<kVnni>;
    case WeightFormat::q4_0:
      return integer_block<WeightFormat::q4_0, kVnni>;
    case WeightFormat::q4_1:
      return integer_block<WeightFormat::q4_1, kVnni>;
    default:
      return integer_block<WeightFormat::q8_0, kVnni>;
  }
}

Block block_of(WeightFormat format) {
#if defined(__AVX512F__)
  if (has_vnni()) return block_of<true>(format);
#endif
  return block_of<false>(format);
}

void finish(const PackedLinear& task, int64_t first_row, int64_t last_row, int64_t first, int64_t last) {
  const FinishRow<float> step = finisher<float>(task.activation);
  for (int64_t r = first_row; r < last_row; ++r)
    step(task.y + r * task.y_stride + first, task.bias ? task.bias + first : nullptr,
         task.residual ? task.residual + r * task.residual_stride + first : nullptr, last - first);
}

}  // namespace

void packed_linear(const PackedLinear& task, int64_t first, int64_t last) {
#if defined(__AVX512F__)
  // Vectors of 64 bytes over blocks of 34 wait for memory longer than those of 32, and the bits are the same.
  if (task.format == WeightFormat::q8_0 && task.rows == 1) return avx2::packed_linear(task, first, last);
#endif
  const Block block = block_of(task.format);
  const int64_t panels = task.panels();
  while (first < last) {
    const int64_t rows = first / panels, panel = first % panels;
    const int64_t end = std::min(panel + last - first, panels);
    const int64_t first_row = task.row_begin(rows), last_row = task.row_begin(rows + 1);
    block(task, first_row, last_row, panel, end);
    finish(task, first_row, last_row, panel * kPanel, std::min(end * kPanel, task.outputs));
    first += end - panel;
  }
}

void quantize_rows(const float* x, int64_t x_stride, int64_t inputs, QuantizedGroup* to, int64_t first,
                   int64_t last) {
  for (int64_t r = first; r < last; ++r)
    quantize_row(x + r * x_stride, inputs, to + r * quantized_groups(inputs));
}

void round_rows(const float* x, int64_t x_stride, int64_t inputs, ByteBlock* to, int64_t first,
                int64_t last) {
  for (int64_t r = first; r < last; ++r) round_row(x + r * x_stride, inputs, to + r * byte_blocks(inputs));
}

namespace {

template <WeightFormat format>
void unpack_blocks(const uint8_t* row, int64_t inputs, float* to) {
  using L = BlockLayout<format>;
  for (int64_t k = 0; k < inputs; ++k) {
    const uint8_t* block = row + k / kWeightBlock * L::kSize;
    const int64_t i = k % kWeightBlock;
    const float d = half_at(block), m = L::kHasMin ? half_at(block + 2) : 0.0f;
    const int bits = L::kNibbles ? block[L::kHead + i % 16] >> (i / 16 * 4) & 15
                                 : static_cast<int8_t>(block[L::kHead + i]);
    const float value = d * static_cast<float>(L::kMinusEight ? bits - 8 : bits);
    to[k] = L::kHasMin ? value + m : value;
  }
}

}  // namespace

void unpack_row(WeightFormat format, const void* weight, const float* weight_scale, int64_t inputs,
                int64_t output, float* to) {
  const int64_t stride = weight_stride(format, inputs);
  const bool panels = is_panelled(format);
  const uint8_t* row = static_cast<const uint8_t*>(weight) + (panels ? output / kPanel : output) * stride;
  const int64_t lane = output % kPanel;
  switch (format) {
    case WeightFormat::float32:
      for (int64_t k = 0; k < inputs; ++k) memcpy(to + k, row + (k * kPanel + lane) * 4, 4);
      return;
    case WeightFormat::bfloat16:
      for (int64_t k = 0; k < inputs; ++k) {
        uint16_t half;
        memcpy(&half, row + (k * kPanel + lane) * 2, 2);
        const uint32_t bits = static_cast<uint32_t>(half) << 16;
        memcpy(to + k, &bits, 4);
      }
      return;
    case WeightFormat::q4_0:
      return unpack_blocks<WeightFormat::q4_0>(row, inputs, to);
    case WeightFormat::q4_1:
      return unpack_blocks<WeightFormat::q4_1>(row, inputs, to);
    case WeightFormat::q8_0:
      return unpack_blocks<WeightFormat::q8_0>(row, inputs, to);
    default:
      for (int64_t k = 0; k < inputs; ++k)
        to[k] = static_cast<float>(static_cast<int8_t>(row[(k / 4 * kPanel + lane) * 4 + k % 4])) *
                weight_scale[output];
  }
}

}  // namespace fastgen::FASTGEN_ISA
