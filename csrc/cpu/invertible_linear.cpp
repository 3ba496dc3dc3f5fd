#include "invertible_linear.h"

#include "stored.h"

namespace fastgen::FASTGEN_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kWide = 4;  // vectors side by side; with 6 rows of them and what is read, most registers
#else
constexpr int kWide = 2;
#endif
constexpr int kRows = 6;

// out = left right + bias, the bias by row or by column: numbers of type S, rows some distance apart. A sum
// starts at the bias and takes up one product after the other, so that its bits depend on nothing else.
template <class S>
struct Product {
  const S *left, *right, *row_bias, *column_bias;
  S* out;
  int64_t depth, left_stride, right_stride, out_stride;
};

// `rows` rows from `row` on, `wide` vectors from `column` on; of the last one `last` lanes count, and no more
// are read and written.
template <int rows, int wide, class S>
inline __attribute__((always_inline)) void block(const Product<S>& p, int64_t row, int64_t column, int last) {
  using V = typename Stored<S>::Vector;
  constexpr int n = Lane<V>::kCount;
  V sum[rows][wide];
  for (int r = 0; r < rows; ++r)
    for (int w = 0; w < wide; ++w)
      sum[r][w] = p.row_bias ? all<V>(p.row_bias[row + r])
                             : Stored<S>::load(p.column_bias + column + w * n, w + 1 < wide ? n : last);
  const S* left = p.left + row * p.left_stride;
  const S* right = p.right + column;
  for (int64_t k = 0; k < p.depth; ++k, ++left, right += p.right_stride) {
    V factor[wide];
#pragma GCC unroll 8
    for (int w = 0; w < wide; ++w) factor[w] = Stored<S>::load(right + w * n, w + 1 < wide ? n : last);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const V one = V{} + left[r * p.left_stride];
#pragma GCC unroll 8
      for (int w = 0; w < wide; ++w) sum[r][w] = multiply_add(one, factor[w], sum[r][w]);
    }
  }
  S* out = p.out + row * p.out_stride + column;
  for (int r = 0; r < rows; ++r)
    for (int w = 0; w < wide; ++w)
      Stored<S>::store(out + r * p.out_stride + w * n, sum[r][w], w + 1 < wide ? n : last);
}

template <int rows, int wide, class S>
void rows_of_blocks(const Product<S>& p, int64_t row, int64_t end, int64_t column, int last) {
  constexpr int n = Lane<typename Stored<S>::Vector>::kCount;
  for (; row + rows <= end; row += rows)
    last == n ? block<rows, wide>(p, row, column, n) : block<rows, wide>(p, row, column, last);
  if constexpr (rows > 1)
    if (row < end) rows_of_blocks<rows / 2, wide>(p, row, end, column, last);
}

template <class S>
void multiply(const Product<S>& p, int64_t rows, int64_t columns) {
  constexpr int n = Lane<typename Stored<S>::Vector>::kCount;
  int64_t column = 0;
  for (; column + kWide * n <= columns; column += kWide * n)
    rows_of_blocks<kRows, kWide>(p, 0, rows, column, n);
  if (kWide > 2 && column + 2 * n <= columns) {
    rows_of_blocks<kRows, 2>(p, 0, rows, column, n);
    column += 2 * n;
  }
  for (; column < columns; column += n)
    rows_of_blocks<2 * kRows, 1>(p, 0, rows, column, static_cast<int>(smaller(n, columns - column)));
}

template <class S>
void tile(const InvertibleLinear& task, int64_t index) {
  const S *x = static_cast<const S*>(task.x), *weight = static_cast<const S*>(task.weight);
  const S* bias = static_cast<const S*>(task.bias);
  S* y = static_cast<S*>(task.y);
  const int64_t channels = task.channels, pixels = task.pixels;
  if (task.channels_last) {
    const int64_t first = index * task.kTile, count = smaller(task.kTile, task.images * pixels - first);
    const S* rows = x + first * channels;
    const Product<S> product{rows,     weight,   nullptr,       bias,    y + first * channels,
                             channels, channels, task.padded(), channels};
    multiply(product, count, channels);
  } else {
    const int64_t tiles = task.tiles_of(pixels), first = index % tiles * task.kTile;
    const int64_t start = index / tiles * channels * pixels + first;
    const Product<S> product{weight, x + start, bias, nullptr, y + start, channels, channels, pixels, pixels};
    multiply(product, channels, smaller(task.kTile, pixels - first));
  }
}

}  // namespace

void invertible_linear(const InvertibleLinear& task, int64_t first, int64_t last) {
  for (int64_t index = first; index < last; ++index)
    task.float64 ? tile<double>(task, index) : tile<float>(task, index);
}

}  // namespace fastgen::FASTGEN_ISA
