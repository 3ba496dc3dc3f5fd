// How an RBM lies in memory while it is sampled.
//
// States are bits, 32 units a word, words of all chains together. Output units are worked on in blocks of
// kWidth. Within a unit of 4 * kLanes32 outputs, vector k holds outputs 4 c + k in lane c: lane c is then
// block c of Philox, whose four words belong to those four outputs, and nothing is ever shuffled.
#pragma once
#include "simd.h"

namespace fastgen::FASTGEN_ISA {

constexpr int kUnit = 4 * kLanes32;              // outputs that one Philox step of vectors draws
constexpr int kWidth = kUnit < 32 ? 32 : kUnit;  // outputs of a block
constexpr int kVectors = kWidth / kLanes32;
constexpr int kWordsOfBlock = kWidth / 32;

FASTGEN_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where output o of a block lies in a row of sums or of float32 weights.
FASTGEN_INLINE int place_in_block(int o) {
  const int unit = o / kUnit, within = o % kUnit;
  return unit * kUnit + within % 4 * kLanes32 + within / 4;
}

// The same in a row of weights. Those of bfloat16 have two vectors side by side, element by element, so that
// a shift and a mask make float32 of them.
template <class T>
FASTGEN_INLINE int place_of_weight(int o) {
  const int place = place_in_block(o), vector = place / kLanes32;
  if (sizeof(T) == 4) return place;
  return vector / 2 * 2 * kLanes32 + place % kLanes32 * 2 + vector % 2;
}

// One direction: sums over `inputs` units for each of `outputs` units. Padding is zero.
template <class T>
struct Layer {
  int64_t inputs, outputs;
  T* weights;           // (blocks, 32 * input_words + 1, kWidth): the last row of a block stays zero
  float* bias;          // (blocks, kWidth)
  uint32_t* free;       // words of outputs that are drawn; the others keep what they hold
  int64_t free_stride;  // chains, or 0 where all chains share a row of words

  FASTGEN_MEMBER int64_t blocks() const { return divide_up(outputs, kWidth); }
  FASTGEN_MEMBER int64_t input_words() const { return divide_up(inputs, 32); }
  FASTGEN_MEMBER int64_t output_words() const { return blocks() * kWordsOfBlock; }
  FASTGEN_MEMBER int64_t rows() const { return 32 * input_words() + 1; }
  FASTGEN_MEMBER const T* block(int64_t b) const { return weights + b * rows() * kWidth; }
};

// Fills a block: weight(input, output) lies at input * input_step + output * output_step.
template <class T>
static void pack_block(const Layer<T>& layer, int64_t block, const T* weight, int64_t input_step,
                       int64_t output_step, const float* bias) {
  const int64_t first = block * kWidth, count = smaller(kWidth, layer.outputs - first);
  T* packed = layer.weights + block * layer.rows() * kWidth;
  const int64_t clear_from = count < kWidth ? 0 : layer.inputs;
  memset(packed + clear_from * kWidth, 0, (layer.rows() - clear_from) * kWidth * sizeof(T));
  if (count < kWidth) memset(layer.bias + first, 0, kWidth * sizeof(float));
  int place[kWidth];
  for (int o = 0; o < kWidth; ++o) place[o] = place_of_weight<T>(o);
  constexpr int64_t kTile = 16;  // inputs at a time, so that both sides stay in the first cache
  for (int64_t tile = 0; tile < layer.inputs; tile += kTile) {
    const int64_t end = smaller(tile + kTile, layer.inputs);
    const T* from = weight + first * output_step;
    if (output_step == 1) {  // along rows of the weights
      for (int64_t i = tile; i < end; ++i)
        for (int o = 0; o < count; ++o) packed[i * kWidth + place[o]] = from[i * input_step + o];
    } else {
      for (int o = 0; o < count; ++o)
        for (int64_t i = tile; i < end; ++i)
          packed[i * kWidth + place[o]] = from[o * output_step + i * input_step];
    }
  }
  for (int o = 0; o < count; ++o) layer.bias[first + place_in_block(o)] = bias[first + o];
}

// 32 bytes of 0 and 1 as a word, the first byte lowest.
FASTGEN_INLINE uint32_t bits_from_bytes(const uint8_t* bytes) {
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    uint64_t eight;
    memcpy(&eight, bytes + 8 * i, 8);
    word |= static_cast<uint32_t>((eight * 0x0102040810204080u) >> 56) << (8 * i);
  }
  return word;
}

FASTGEN_INLINE void bytes_from_bits(uint32_t word, uint8_t* bytes) {
  for (int i = 0; i < 4; ++i) {
    const uint64_t spread = ((word >> (8 * i) & 0xFFu) * 0x0101010101010101u) & 0x8040201008040201u;
    const uint64_t eight = ((spread + 0x7F7F7F7F7F7F7F7Fu) >> 7) & 0x0101010101010101u;
    memcpy(bytes + 8 * i, &eight, 8);
  }
}

// A row of `units` bytes to `count` words `stride` apart, and back.
static void pack_bits(const uint8_t* bytes, int64_t units, int64_t count, uint32_t* words, int64_t stride) {
  for (int64_t w = 0; w < count; ++w) {
    const int64_t there = units - 32 * w;
    uint8_t padded[32] = {};
    if (there > 0 && there < 32) memcpy(padded, bytes + 32 * w, there);
    words[w * stride] = bits_from_bytes(there < 32 ? padded : bytes + 32 * w);
  }
}

static void unpack_bits(const uint32_t* words, int64_t stride, int64_t units, uint8_t* bytes) {
  for (int64_t i = 0; i < units; i += 32, words += stride) {
    uint8_t padded[32];
    bytes_from_bits(*words, units - i < 32 ? padded : bytes + i);
    if (units - i < 32) memcpy(bytes + i, padded, units - i);
  }
}

}  // namespace fastgen::FASTGEN_ISA
