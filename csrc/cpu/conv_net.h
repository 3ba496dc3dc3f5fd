// Three convolutions with an activation between them, image by image: the network inside a coupling of Glow.
#pragma once
#include <cstdint>

#include "isa.h"

namespace fastgen {

struct ConvLayer {
  int64_t inputs, outputs, side;  // side: 1 or 3
  // (outputs, inputs, side, side), those distances apart; inputs are next to each other, or else they are
  // `side * side` apart and the taps are next to each other.
  const void* weight;
  int64_t output_stride, input_stride, row_stride, column_stride;
  const void* bias;     // (outputs), of an image `bias_stride` behind that of the image before; or null
  int64_t bias_stride;  // 0 where all images share it
  void* packed;         // packed_size() numbers, from pack_conv_net

  int64_t margin() const { return side / 2; }
  int64_t taps() const { return side * side; }
  int64_t panels() const { return (outputs + kPanel - 1) / kPanel; }
  int64_t packed_size() const { return panels() * kPanel * inputs * taps(); }
  static constexpr int64_t kPanel = 16;  // outputs that are packed as one, whatever the vectors are
};

// Numbers are double if `float64`, else float. Outside of the image all layers see zeros.
struct ConvNet {
  static constexpr int kLayers = 3;
  bool float64, channels_last;
  int64_t images, height, width;
  const void* x;  // inputs of the first layer, those distances apart
  int64_t image_stride, channel_stride, row_stride, column_stride;
  void* y;  // (images, height, width, outputs) if channels_last, else (images, outputs, height, width)
  ConvLayer layers[kLayers];
  double slope;       // of what is negative after a layer but the last; 0 is ReLU
  int64_t band_rows;  // rows of an image that are a unit of work: its bits do not depend on it

  int64_t bands() const { return (height + band_rows - 1) / band_rows; }
  int64_t units() const { return images * bands(); }
  // Rows of a layer's inputs that a unit's results need above and below them.
  int64_t halo(int layer) const { return layer == kLayers ? 0 : halo(layer + 1) + layers[layer].margin(); }
  // Numbers of a layer's inputs, or of the last one's results, in a unit.
  int64_t plane_size(int layer) const {
    const int64_t margin = layer == kLayers ? 0 : layers[layer].margin();
    const int64_t channels = layer == kLayers ? layers[layer - 1].outputs : layers[layer].inputs;
    return (band_rows + 2 * halo(layer)) * (width + 2 * margin) * channels;
  }
  int64_t scratch_size() const {
    int64_t size = 0;
    for (int layer = 0; layer <= kLayers; ++layer) size += plane_size(layer);
    return size;
  }
};

// Panels first .. last - 1 of a layer's weight.
FASTGEN_DECLARE_KERNEL(void, pack_conv_net,
                       (const ConvLayer& layer, bool float64, int64_t first, int64_t last))

// Units first .. last - 1, with memory for scratch_size() numbers.
FASTGEN_DECLARE_KERNEL(void, conv_net, (const ConvNet& task, void* scratch, int64_t first, int64_t last))

}  // namespace fastgen
