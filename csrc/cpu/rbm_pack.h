// Weights into blocks of outputs, states into words of bits and back.
#pragma once
#include "rbm_layout.h"

namespace fastgen::FASTGEN_ISA {

// Lanes of a and b by turns: of their lower halves, of their upper halves.
FASTGEN_INLINE void interleave32(U32 a, U32 b, U32& lower, U32& upper) {
  I32 low, high;
  for (int i = 0; i < kLanes32; ++i) {
    low[i] = i / 2 + i % 2 * kLanes32;
    high[i] = low[i] + kLanes32 / 2;
  }
  lower = __builtin_shuffle(a, b, low);
  upper = __builtin_shuffle(a, b, high);
}

// Of the row a b, every second lane from the first and from the second on.
FASTGEN_INLINE void separate32(U32 a, U32 b, U32& even, U32& odd) {
  I32 twice;
  for (int i = 0; i < kLanes32; ++i) twice[i] = 2 * i;
  even = __builtin_shuffle(a, b, twice);
  odd = __builtin_shuffle(a, b, twice + 1);
}

// Each step interleaves the first half of the rows with the second.
FASTGEN_INLINE void transpose(U32 (&row)[kLanes32]) {
#pragma GCC unroll 4
  for (int step = 1; step < kLanes32; step *= 2) {
    U32 next[kLanes32];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes32 / 2; ++i)
      interleave32(row[i], row[i + kLanes32 / 2], next[2 * i], next[2 * i + 1]);
    memcpy(row, next, sizeof next);
  }
}

// The weights of a unit of outputs from one input, in the order of memory, to their places.
FASTGEN_INLINE void place_unit(const float* from, float* to) {
  U32 v[4];
  for (int k = 0; k < 4; ++k) v[k] = load<U32>(from + k * kLanes32);
  U32 even[2], odd[2];
  separate32(v[0], v[1], even[0], odd[0]);
  separate32(v[2], v[3], even[1], odd[1]);
  separate32(even[0], even[1], v[0], v[2]);
  separate32(odd[0], odd[1], v[1], v[3]);
  for (int k = 0; k < 4; ++k) store(to + k * kLanes32, v[k]);
}

FASTGEN_INLINE void place_unit(const uint16_t* from, uint16_t* to) {
  U32 first, second;
  separate32(load<U32>(from), load<U32>(from + 2 * kLanes32), first, second);
  store(to, first);
  store(to + 2 * kLanes32, second);
}

// Weights of the inputs of a vector to outputs o (and o + 1, above it, of bfloat16): 0 where they are not
// there.
FASTGEN_INLINE U32 load_inputs(const float* from, int64_t, int64_t, int64_t inputs) {
  return load_first<U32>(from, inputs);
}

FASTGEN_INLINE U32 load_inputs(const uint16_t* from, int64_t output_step, int64_t outputs, int64_t inputs) {
  U32 pairs{};
  for (int64_t o = 0; o < smaller(outputs, 2); ++o) {
    typedef uint16_t Half __attribute__((vector_size(kBytes / 2)));
    Half row{};
    memcpy(&row, from + o * output_step, inputs * sizeof(uint16_t));
    pairs |= __builtin_convertvector(row, U32) << (16 * static_cast<int>(o));
  }
  return pairs;
}

// The weights of some outputs of a block from kLanes32 inputs, which lie side by side.
template <class T>
FASTGEN_INLINE void place_inputs(const T* from, int64_t output_step, int64_t outputs, int64_t inputs, T* to) {
  constexpr int kTogether = 4 / static_cast<int>(sizeof(T));  // outputs in a lane
  for (int first = 0; first < kWidth; first += kUnit)
    for (int k = 0; k < 4; k += kTogether) {
      U32 row[kLanes32];
      for (int c = 0; c < kLanes32; ++c) {
        const int64_t o = first + 4 * c + k;
        row[c] = o < outputs ? load_inputs(from + o * output_step, output_step, outputs - o, inputs) : U32{};
      }
      transpose(row);
      for (int64_t i = 0; i < inputs; ++i) store(to + i * kWidth + first + k * kLanes32, row[i]);
    }
}

// Fills a block: weight(input, output) lies at input * input_step + output * output_step, one of which is 1.
template <class T>
static void pack_block(const Layer<T>& layer, int64_t block, const T* weight, int64_t input_step,
                       int64_t output_step, const float* bias) {
  const int64_t first = block * kWidth, count = smaller(kWidth, layer.outputs - first);
  T* packed = layer.weights + block * layer.rows() * kWidth;
  weight += first * output_step;
  if (output_step == 1) {
    T padded[kWidth] = {};
    for (int64_t i = 0; i < layer.inputs; ++i) {
      const T* row = weight + i * input_step;
      if (count < kWidth) row = static_cast<const T*>(memcpy(padded, row, count * sizeof(T)));
      for (int unit = 0; unit < kWidth; unit += kUnit) place_unit(row + unit, packed + i * kWidth + unit);
    }
  } else {
    for (int64_t i = 0; i < layer.inputs; i += kLanes32)
      place_inputs(weight + i, output_step, count, smaller(kLanes32, layer.inputs - i), packed + i * kWidth);
  }
  memset(packed + layer.inputs * kWidth, 0, (layer.rows() - layer.inputs) * kWidth * sizeof(T));
  for (int o = 0; o < kWidth; ++o) layer.bias[first + place_in_block(o)] = o < count ? bias[first + o] : 0.0f;
}

// 32 units as a word, the first lowest; leaves a bit in `wrong` if one is neither 0 nor 1.
FASTGEN_INLINE uint32_t bits_of(const uint8_t* units, U32& wrong) {
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    uint64_t eight;
    memcpy(&eight, units + 8 * i, 8);
    word |= static_cast<uint32_t>((eight * 0x0102040810204080u) >> 56) << (8 * i);
  }
  for (int i = 0; i < 32; i += 16) {
    U32 some{};
    memcpy(&some, units + i, 16);
    wrong |= some & 0xFEFEFEFEu;
  }
  return word;
}

FASTGEN_INLINE uint32_t bits_of(const float* units, U32& wrong) {
  uint32_t word = 0;
  for (int i = 0; i < 32; i += kLanes32) {
    const F32 x = load<F32>(units + i);
    const U32 on = (U32)(x == 1.0f);
    wrong |= ~(on | (U32)(x == 0.0f));
    word |= nonzero_lanes(on) << i;
  }
  return word;
}

FASTGEN_INLINE void units_of(uint32_t word, uint8_t* units) {
  for (int i = 0; i < 4; ++i) {
    const uint64_t spread = ((word >> (8 * i) & 0xFFu) * 0x0101010101010101u) & 0x8040201008040201u;
    const uint64_t eight = ((spread + 0x7F7F7F7F7F7F7F7Fu) >> 7) & 0x0101010101010101u;
    memcpy(units + 8 * i, &eight, 8);
  }
}

FASTGEN_INLINE void units_of(uint32_t word, float* units) {
  U32 lane;
  for (int i = 0; i < kLanes32; ++i) lane[i] = i;
  for (int i = 0; i < 32; i += kLanes32)
    store(units + i, __builtin_convertvector((I32)(word >> i >> lane & 1), F32));
}

// A row of units to `count` words `stride` apart. False if one is neither 0 nor 1.
template <class T>
static bool pack_bits(const T* row, int64_t units, int64_t count, uint32_t* words, int64_t stride) {
  U32 wrong{};
  for (int64_t w = 0; w < count; ++w) {
    const int64_t there = units - 32 * w;
    T padded[32] = {};
    if (there > 0 && there < 32) memcpy(padded, row + 32 * w, there * sizeof(T));
    words[w * stride] = bits_of(there < 32 ? padded : row + 32 * w, wrong);
  }
  return !any_bit(wrong);
}

template <class T>
static void unpack_bits(const uint32_t* words, int64_t stride, int64_t units, T* row) {
  for (int64_t i = 0; i < units; i += 32, words += stride) {
    T padded[32];
    units_of(*words, units - i < 32 ? padded : row + i);
    if (units - i < 32) memcpy(row + i, padded, (units - i) * sizeof(T));
  }
}

}  // namespace fastgen::FASTGEN_ISA
