// How an RBM lies in memory while it is sampled.
//
// States are bits, 32 units a word, words of all chains together. Output units are worked on in blocks of
// kWidth. Within a unit of 4 * kLanes32 outputs, vector k holds outputs 4 c + k in lane c: lane c is then
// block c of Philox, whose four words belong to those four outputs, and nothing is shuffled after packing. A
// row of bfloat16 weights has two vectors side by side, element by element, so that a shift and a mask make
// float32 of them.
#pragma once
#include "simd.h"

namespace fastgen::FASTGEN_ISA {

constexpr int kUnit = 4 * kLanes32;              // outputs that one Philox step of vectors draws
constexpr int kWidth = kUnit < 32 ? 32 : kUnit;  // outputs of a block
constexpr int kVectors = kWidth / kLanes32;
constexpr int kWordsOfBlock = kWidth / 32;

// What a last block of few outputs needs of a vector: 784 visible units leave 16 for it.
typedef float Narrow __attribute__((vector_size(16)));
constexpr int kNarrowOutputs = kVectors == 4 ? 16 : 0;

FASTGEN_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where output o of a block lies in a row of sums or of float32 weights.
FASTGEN_INLINE int place_in_block(int o) {
  const int unit = o / kUnit, within = o % kUnit;
  return unit * kUnit + within % 4 * kLanes32 + within / 4;
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

}  // namespace fastgen::FASTGEN_ISA
