#include "conv_net.h"

#include <algorithm>
#include <iterator>

#include "transpose.h"

namespace fastgen::FASTGEN_ISA {
namespace {

constexpr int kPixels = 6;                    // pixels of a tile: its sums fill the registers
constexpr int kGroup = kBytes == 64 ? 4 : 2;  // vectors of outputs of a tile

template <class V>
using Scalar = typename Lane<V>::Scalar;

// Outputs of a layer in groups of vectors. A group is packed as (row of taps, column, input, output), so that
// a tile reads it from front to back.
template <class V>
struct Group {
  static constexpr int64_t kLanes = Lane<V>::kCount;
  int64_t first, vectors;  // output, and how many vectors from there
  Scalar<V>* weight;

  Group(const ConvLayer& layer, int64_t index) {
    const int64_t all_vectors = layer.panels() * ConvLayer::kPanel / kLanes;
    first = index * kGroup * kLanes, vectors = smaller(kGroup, all_vectors - index * kGroup);
    weight = static_cast<Scalar<V>*>(layer.packed) + first * layer.inputs * layer.taps();
  }
};

template <class V>
int64_t groups(const ConvLayer& layer) {
  return (layer.panels() * ConvLayer::kPanel / Lane<V>::kCount + kGroup - 1) / kGroup;
}

// A vector of outputs: the weights lie in runs, one for each tap or one of all, which are transposed.
template <class V>
void pack_vector(const ConvLayer& layer, int64_t output, Scalar<V>* to, int64_t step) {
  constexpr int64_t n = Lane<V>::kCount;
  const int64_t count = std::clamp<int64_t>(layer.outputs - output, 0, n), taps = layer.taps();
  const bool by_tap = layer.input_stride == 1;
  const int64_t length = by_tap ? layer.inputs : layer.inputs * taps;
  for (int64_t run = 0; run < (by_tap ? taps : 1); ++run) {
    const Scalar<V>* from = static_cast<const Scalar<V>*>(layer.weight) + output * layer.output_stride +
                            run / layer.side * layer.row_stride + run % layer.side * layer.column_stride;
    for (int64_t j = 0; j < length; j += n) {
      const int64_t left = smaller(n, length - j);
      V square[n] = {};
      for (int64_t i = 0; i < count; ++i) square[i] = load_first<V>(from + i * layer.output_stride + j, left);
      transpose(square);
      for (int64_t i = 0; i < left; ++i) {
        const int64_t place = by_tap ? run * length + j + i : (j + i) % taps * layer.inputs + (j + i) / taps;
        store(to + place * step, square[i]);
      }
    }
  }
}

// Rows of an image with `margin` pixels of zeros to either side, channels next to each other.
template <class S>
struct Plane {
  S* data;
  int64_t first_row, margin, width, channels;  // width: with the margins
  S* at(int64_t row, int64_t column) const {
    return data + ((row - first_row) * width + column + margin) * channels;
  }
};

// What a layer reads and writes for one band of one image.
template <class V>
struct Pass {
  Plane<Scalar<V>> in, out;
  int64_t side, columns;
  const Scalar<V>* bias;
  Scalar<V> slope;
};

// Sums of P pixels from number `pixel` on, counted from row 0, by G vectors of outputs. A sum starts at the
// bias and adds products in the order of the packed weights.
template <int P, int G, class V>
void tile(const Pass<V>& pass, int64_t pixel, int64_t first, const Scalar<V>* weight) {
  constexpr int n = Lane<V>::kCount;
  const int64_t left = pass.out.channels - first, row_stride = pass.in.width * pass.in.channels;
  const int64_t run = pass.side * pass.in.channels;
  const Scalar<V>* from[P];
  Scalar<V>* to[P];
  V sum[P][G];
  int64_t row = pixel / pass.columns, column = pixel % pass.columns;
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    from[p] = pass.in.at(row - pass.side / 2, column - pass.side / 2), to[p] = pass.out.at(row, column);
    if (++column == pass.columns) column = 0, ++row;
  }
#pragma GCC unroll 4
  for (int g = 0; g < G; ++g) {
    const int64_t count = std::clamp<int64_t>(left - g * n, 0, n);
    const V start = pass.bias ? load_first<V>(pass.bias + first + g * n, count) : V{};
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sum[p][g] = start;
  }
  for (int64_t y = 0; y < pass.side; ++y) {
    const int64_t begin = y * row_stride;
    for (int64_t k = begin; k < begin + run; ++k, weight += G * n) {
      V factor[G];
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) factor[g] = load<V>(weight + g * n);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        const V one = from[p][k] - V{};  // minus zero leaves it as it is
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) sum[p][g] = multiply_add(one, factor[g], sum[p][g]);
      }
    }
  }
  const V slope = pass.slope - V{};
  const bool relu = pass.slope == 0;  // which knows no 0 times infinity
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      const V z = sum[p][g], negative = relu ? V{} : z * slope, active = z < V{} ? negative : z;
      const int64_t count = left - g * n;
      if (count >= n)
        store(to[p] + first + g * n, active);
      else if (count > 0)
        store_first(to[p] + first + g * n, active, count);
    }
}

template <class V>
using Tile = void (*)(const Pass<V>&, int64_t, int64_t, const Scalar<V>*);

template <class V, int... I>
Tile<V> tile_of(int64_t pixels, int64_t vectors, std::integer_sequence<int, I...>) {
  static constexpr Tile<V> kAll[] = {tile<I / kGroup + 1, I % kGroup + 1, V>...};
  return kAll[(pixels - 1) * kGroup + vectors - 1];
}

// Pixels first .. last - 1 of a layer's results.
template <class V>
void convolve(const ConvLayer& layer, const Pass<V>& pass, int64_t first, int64_t last) {
  const int64_t pixels = last - first, tiles = (pixels + kPixels - 1) / kPixels;
  for (int64_t index = 0; index < groups<V>(layer); ++index) {
    const Group<V> group(layer, index);
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t begin = pixels * t / tiles, end = pixels * (t + 1) / tiles;
      const Tile<V> run =
          tile_of<V>(end - begin, group.vectors, std::make_integer_sequence<int, kPixels * kGroup>());
      run(pass, first + begin, group.first, group.weight);
    }
  }
}

// A band of an image, from x to y.
template <class V>
class Unit {
 public:
  using S = Scalar<V>;
  Unit(const ConvNet& task, int64_t unit, S* scratch)
      : task_(task),
        image_(unit / task.bands()),
        first_(unit % task.bands() * task.band_rows),
        last_(smaller(first_ + task.band_rows, task.height)) {
    for (int i = 0; i <= ConvNet::kLayers; ++i) {
      const bool end = i == ConvNet::kLayers;
      const int64_t margin = end ? 0 : task.layers[i].margin();
      const int64_t channels = end ? task.layers[i - 1].outputs : task.layers[i].inputs;
      planes_[i] = {scratch, first_ - task.halo(i), margin, task.width + 2 * margin, channels};
      scratch += task.plane_size(i);
    }
    if (task.channels_last)
      planes_[ConvNet::kLayers] = {result(), 0, 0, task.width, task.layers[ConvNet::kLayers - 1].outputs};
  }

  void run() {
    clear_outside(0);
    read();
    for (int i = 0; i < ConvNet::kLayers; ++i) {
      const ConvLayer& layer = task_.layers[i];
      const bool end = i + 1 == ConvNet::kLayers;
      if (!end) clear_outside(i + 1);
      const S* bias = static_cast<const S*>(layer.bias);
      const Pass<V> pass{planes_[i],
                         planes_[i + 1],
                         layer.side,
                         task_.width,
                         bias ? bias + image_ * layer.bias_stride : nullptr,
                         end ? S{1} : static_cast<S>(task_.slope)};
      convolve<V>(layer, pass, first_row(i + 1) * task_.width, last_row(i + 1) * task_.width);
    }
    if (!task_.channels_last) write();
  }

 private:
  // Rows of a layer's inputs that are wanted and within the image.
  int64_t first_row(int i) const { return std::max<int64_t>(first_ - task_.halo(i), 0); }
  int64_t last_row(int i) const { return smaller(last_ + task_.halo(i), task_.height); }

  S* result() const {
    return static_cast<S*>(task_.y) +
           image_ * task_.height * task_.width * task_.layers[ConvNet::kLayers - 1].outputs;
  }

  void clear_outside(int i) {
    const Plane<S>& plane = planes_[i];
    const int64_t first = first_row(i), last = last_row(i), margin = plane.margin;
    const auto clear = [&](int64_t row, int64_t column, int64_t pixels) {
      std::fill_n(plane.at(row, column), pixels * plane.channels, S{});
    };
    clear(plane.first_row, -margin, (first - plane.first_row) * plane.width);
    clear(last, -margin, (last_ + task_.halo(i) - last) * plane.width);
    if (margin > 0)
      for (int64_t row = first; row < last; ++row)
        clear(row, -margin, margin), clear(row, task_.width, margin);
  }

  void read() {
    const Plane<S>& plane = planes_[0];
    for (int64_t row = first_row(0); row < last_row(0); ++row)
      for (int64_t column = 0; column < task_.width; ++column) {
        const S* from = static_cast<const S*>(task_.x) + image_ * task_.image_stride +
                        row * task_.row_stride + column * task_.column_stride;
        S* to = plane.at(row, column);
        for (int64_t c = 0; c < plane.channels; ++c) to[c] = from[c * task_.channel_stride];
      }
  }

  void write() {
    const Plane<S>& plane = planes_[ConvNet::kLayers];
    for (int64_t c = 0; c < plane.channels; ++c)
      for (int64_t row = first_; row < last_; ++row) {
        S* to = result() + (c * task_.height + row) * task_.width;
        const S* from = plane.at(row, 0) + c;
        for (int64_t column = 0; column < task_.width; ++column) to[column] = from[column * plane.channels];
      }
  }

  const ConvNet& task_;
  const int64_t image_, first_, last_;
  Plane<S> planes_[ConvNet::kLayers + 1];
};

template <class V>
void pack(const ConvLayer& layer, int64_t first, int64_t last) {
  constexpr int64_t n = Lane<V>::kCount, kVectors = ConvLayer::kPanel / n;
  for (int64_t v = first * kVectors; v < last * kVectors; ++v) {
    const Group<V> group(layer, v / kGroup);
    pack_vector<V>(layer, v * n, group.weight + v % kGroup * n, group.vectors * n);
  }
}

template <class V>
void run(const ConvNet& task, void* scratch, int64_t first, int64_t last) {
  for (int64_t unit = first; unit < last; ++unit) Unit<V>(task, unit, static_cast<Scalar<V>*>(scratch)).run();
}

}  // namespace

void pack_conv_net(const ConvLayer& layer, bool float64, int64_t first, int64_t last) {
  (float64 ? pack<F64> : pack<F32>)(layer, first, last);
}

void conv_net(const ConvNet& task, void* scratch, int64_t first, int64_t last) {
  (task.float64 ? run<F64> : run<F32>)(task, scratch, first, last);
}

}  // namespace fastgen::FASTGEN_ISA
