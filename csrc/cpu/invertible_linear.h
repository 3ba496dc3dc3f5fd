// A matrix times the channels of every pixel: products in the order of the channels, added to the bias.
#pragma once
#include <cstdint>

#include "isa.h"

namespace fastgen {

struct InvertibleLinear {
  bool float64;  // float otherwise
  int64_t images, channels, pixels;
  bool channels_last;  // x and y are (images, pixels, channels), else (images, channels, pixels)
  const void* x;
  const void* weight;  // (outputs, inputs); channels last: (inputs, outputs), each row padded to `padded`
  const void* bias;    // (channels); channels last: padded; zeros for none
  void* y;

  static constexpr int64_t kTile = 64;  // pixels of one image, or any pixels if channels are last
  int64_t padded() const { return (channels + 15) / 16 * 16; }
  int64_t tiles_of(int64_t n) const { return (n + kTile - 1) / kTile; }
  int64_t tiles() const { return channels_last ? tiles_of(images * pixels) : images * tiles_of(pixels); }
};

FASTGEN_DECLARE_KERNEL(void, invertible_linear, (const InvertibleLinear& task, int64_t first, int64_t last))

}  // namespace fastgen
