#include "linear.h"

#include <algorithm>

#include "activation.h"

namespace fastgen::FASTGEN_ISA {
namespace {

constexpr int kOutputs = 4;                  // outputs of a tile
constexpr int kRows = kBytes == 64 ? 4 : 3;  // rows of a tile: its sums and what they need fill the registers
constexpr int64_t kNear = 1 << 14;           // bytes of rows and their results that stay in the first cache

// Where N rows begin, `stride` apart; after the last of `count` that one again and again.
template <int N, class P>
FASTGEN_INLINE void spread(const P* first, int64_t stride, int64_t count, const P* (&row)[N]) {
  row[0] = first;
#pragma GCC unroll 16
  for (int i = 1; i < N; ++i) row[i] = row[i - 1] + (i < count ? stride : 0);
}

// Up to kRows rows by up to kOutputs outputs. What a tile has more is computed from its last row and output
// again, and not stored.
template <class T, class W>
static void tile(const T* x, const W* weight, int64_t inputs, int64_t rows, int64_t outputs, T* y,
                 int64_t y_stride) {
  constexpr int kPer = 16 / sizeof(T);
  const T* row[kRows];
  const W* column[kOutputs];
  spread(x, inputs, rows, row);
  spread(weight, inputs, outputs, column);
  Vec<T> sums[kRows][kOutputs];
  multiply(row, column, inputs, sums);
#pragma GCC unroll 4
  for (int first = 0; first < kRows; first += kBlocks)
#pragma GCC unroll 2
    for (int o = 0; o < kOutputs; o += kPer) {
      Vec<T> group[kPer][kBlocks];
#pragma GCC unroll 4
      for (int j = 0; j < kPer; ++j)
#pragma GCC unroll 4
        for (int b = 0; b < kBlocks; ++b) group[j][b] = sums[std::min(first + b, kRows - 1)][o + j];
      T added[kLanes<T>];
      store(added, add_lanes(group));
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b) {
        const int r = first + b;
        if (r >= kRows || r >= rows) break;
        if (outputs >= kOutputs)
          memcpy(y + r * y_stride + o, added + b * kPer, 16);
        else if (o < outputs)
          memcpy(y + r * y_stride + o, added + b * kPer, std::min<int64_t>(outputs - o, kPer) * sizeof(T));
      }
    }
}

// One row by as many outputs as a vector has lanes, or fewer.
template <class T, class W>
static void row_tile(const T* x, const W* weight, int64_t inputs, int64_t outputs, T* y) {
  constexpr int kPer = 16 / sizeof(T);
  const T* const row[1] = {x};
  Vec<T> group[kPer][kBlocks];
#pragma GCC unroll 4
  for (int b = 0; b < kBlocks; ++b) {
    const int64_t first = std::min<int64_t>(b * kPer, outputs - 1);
    const W* column[kPer];
    spread(weight + first * inputs, inputs, outputs - first, column);
    Vec<T> sums[1][kPer];
    multiply(row, column, inputs, sums);
#pragma GCC unroll 4
    for (int j = 0; j < kPer; ++j) group[j][b] = sums[0][j];
  }
  const Vec<T> added = add_lanes(group);
  if (outputs >= kLanes<T>)
    store(y, added);
  else
    memcpy(y, &added, outputs * sizeof(T));
}

template <class T, class W>
static void block(const Linear& task, int64_t first_row, int64_t last_row, int64_t first, int64_t last) {
  const FinishRow<T> finish = finisher<T>(task.activation);
  const int64_t inputs = task.inputs, stride = task.outputs;
  const T *x = static_cast<const T*>(task.x), *bias = static_cast<const T*>(task.bias);
  const T* residual = static_cast<const T*>(task.residual);
  const W* weight = static_cast<const W*>(task.weight);
  T* y = static_cast<T*>(task.y);
  const int64_t fitting = kNear / ((inputs + last - first) * static_cast<int64_t>(sizeof(T))) / kRows * kRows;
  const int64_t near = std::max<int64_t>(fitting, kRows);
  for (int64_t begin = first_row; begin < last_row; begin += near) {
    const int64_t end = std::min(begin + near, last_row);
    if (end - begin == 1)
      for (int64_t o = first; o < last; o += kLanes<T>)
        row_tile(x + begin * inputs, weight + o * inputs, inputs, last - o, y + begin * stride + o);
    else
      for (int64_t o = first; o < last; o += kOutputs)
        for (int64_t r = begin; r < end; r += kRows)
          tile(x + r * inputs, weight + o * inputs, inputs, end - r, last - o, y + r * stride + o, stride);
    for (int64_t r = begin; r < end; ++r)
      finish(y + r * stride + first, bias ? bias + first : nullptr,
             residual ? residual + r * stride + first : nullptr, last - first);
  }
}

}  // namespace

void linear(const Linear& task, int64_t first, int64_t last) {
  const auto run = task.real_bytes == 8     ? block<double, double>
                   : task.weight_bytes == 2 ? block<float, BFloat16>
                                            : block<float, float>;
  const int64_t row_blocks = task.row_blocks(), rows = task.row_block(), outputs = task.output_block();
  for (int64_t unit = first; unit < last; ++unit) {
    const int64_t row = unit % row_blocks * rows, output = unit / row_blocks * outputs;
    run(task, row, std::min(row + rows, task.rows), output, std::min(output + outputs, task.outputs));
  }
}

}  // namespace fastgen::FASTGEN_ISA
