// y = activation(x W^T + b) + residual with W in the format that its memory has, for blocks of rows and
// outputs. Used alone, and by kernels that run many such products inside one parallel region.
#pragma once
#include <algorithm>
#include <cstdint>

#include "isa.h"
#include "linear.h"

namespace fastgen {

enum class WeightFormat : int64_t { float32, bfloat16, int8, q4_0, q4_1, q8_0, count };

constexpr int64_t kPanel = 16;          // outputs that lie side by side, and are a unit of work
constexpr int64_t kPanelsTogether = 4;  // units that are best done at once
constexpr int64_t kWeightBlock = 32;    // inputs that share a scale
constexpr int64_t kBlockGroup = 4;      // blocks whose sums are apart until the end
constexpr int64_t kFewRows = 4;         // rows up to which unpacking a panel first does not pay

// Panels of outputs, or else rows of GGUF's blocks.
constexpr bool is_panelled(WeightFormat format) { return format <= WeightFormat::int8; }

// Four blocks of a row of x in 16-bit integers. Words [0][c][j] are inputs 2j of block c, [1] inputs 2j + 1,
// [2] and [3] the same of the upper 16: so the halves of bytes of a weight come out of their blocks. The same
// integers are 256 high + low, the lower 16 inputs of a block in [0], the upper in [1]. Each block's scale
// and sum stand in four lanes, for four outputs.
struct alignas(64) QuantizedGroup {
  int16_t q[4][kBlockGroup][8];
  uint8_t low[2][kBlockGroup][16];
  int8_t high[2][kBlockGroup][16];
  float scale[kBlockGroup][4];
  float scaled_sum[kBlockGroup][4];  // scale times the sum of the integers
  int32_t eight_sums[kBlockGroup][4];
};

// A block of a row of x in 8 bits; pairs of its even and of its odd inputs, too, for those who multiply
// pairs.
struct ByteBlock {
  int8_t q[32];
  int16_t words[2][16];
  float scale;
  int32_t offset;  // -128 times the sum of q
};

// A block of 32 inputs of a panel of GGUF's formats, unpacked for many rows into pairs of 16-bit integers:
// pair [s][d] of an output holds inputs 4d + s % 2 and two further of the lower (s < 2) or upper 16.
struct alignas(64) PanelBlock {
  int32_t pairs[4][4][kPanel];
  float scale[kPanel], least[kPanel];
};

inline int64_t byte_blocks(int64_t inputs) { return (inputs + kWeightBlock - 1) / kWeightBlock; }

inline int64_t quantized_groups(int64_t inputs) {
  return (inputs + kWeightBlock * kBlockGroup - 1) / (kWeightBlock * kBlockGroup);
}

// Bytes of a panel or of a row.
inline int64_t weight_stride(WeightFormat format, int64_t inputs) {
  switch (format) {
    case WeightFormat::float32:
      return inputs * kPanel * 4;
    case WeightFormat::bfloat16:
      return inputs * kPanel * 2;
    case WeightFormat::q4_0:
      return inputs / kWeightBlock * 18;
    case WeightFormat::q4_1:
      return inputs / kWeightBlock * 20;
    case WeightFormat::q8_0:
      return inputs / kWeightBlock * 34;
    default:
      return (inputs + 3) / 4 * 4 * kPanel;
  }
}

struct PackedLinear {
  int64_t rows, inputs, outputs;
  const float* x;  // (rows, inputs), x_stride apart
  int64_t x_stride;
  WeightFormat format;
  // (ceil(outputs / 16), inputs, 16), with int8 (ceil(outputs / 16), ceil(inputs / 4), 16, 4); or `outputs`
  // rows
  const void* weight;
  const float* weight_scale;     // (outputs,) with int8
  const float *bias, *residual;  // (outputs,), (rows, outputs) residual_stride apart; or null
  int64_t residual_stride;
  float* y;  // (rows, outputs), y_stride apart
  int64_t y_stride;
  Activation activation;
  const QuantizedGroup* quantized;  // (rows, quantized_groups(inputs)), from quantize_rows; GGUF's formats
  const ByteBlock* bytes;           // (rows, byte_blocks(inputs)), from round_rows; int8
  PanelBlock* unpacked;             // (byte_blocks(inputs)), written; GGUF's formats and more than kFewRows

  int64_t panels() const { return (outputs + kPanel - 1) / kPanel; }
  int64_t row_blocks() const { return (rows + 95) / 96; }
  int64_t row_begin(int64_t block) const { return rows * block / row_blocks(); }
  // Units of work; those of a block of rows are next to each other.
  int64_t units() const { return panels() * row_blocks(); }
};

// Rows first .. last - 1 of x as GGUF's formats multiply them. Shared by all tasks with the same x.
FASTGEN_DECLARE_KERNEL(void, quantize_rows,
                       (const float* x, int64_t x_stride, int64_t inputs, QuantizedGroup* to, int64_t first,
                        int64_t last))

// The same as int8 multiplies them.
FASTGEN_DECLARE_KERNEL(void, round_rows,
                       (const float* x, int64_t x_stride, int64_t inputs, ByteBlock* to, int64_t first,
                        int64_t last))

// Units first .. last - 1.
FASTGEN_DECLARE_KERNEL(void, packed_linear, (const PackedLinear& task, int64_t first, int64_t last))

// Row `output` of the weight in float32: an embedding.
FASTGEN_DECLARE_KERNEL(void, unpack_row,
                       (WeightFormat format, const void* weight, const float* weight_scale, int64_t inputs,
                        int64_t output, float* to))

}  // namespace fastgen
