// Four blocks of a row of integer weights, as words and heads in lanes.
#pragma once
#include "packed_words.h"

namespace fastgen::FASTGEN_ISA {

constexpr int kQuad = 4;  // outputs at a time

#if defined(__AVX512F__)

// All four blocks at once. What is past `bytes` is zero, and not read.
template <WeightFormat format>
struct Group {
  using L = BlockLayout<format>;
  __m512i first, second, last;  // bytes 0, 64 and 128 of the group

  template <bool kWhole>
  FASTGEN_INLINE Group read(const uint8_t* p, int64_t bytes) {
    constexpr int kBytesOfAll = kBlockGroup * L::kSize;
    const auto at = [p, bytes](int64_t begin) {
      if constexpr (kWhole) return _mm512_loadu_si512(p + begin);
      const int64_t left = bytes - begin;
      return _mm512_maskz_loadu_epi8(left <= 0 ? 0 : ~uint64_t{0} >> (left < 64 ? 64 - left : 0), p + begin);
    };
    Group g{at(0), __m512i{}, __m512i{}};
    if constexpr (!L::kNibbles) g.second = at(64);
    if constexpr (!kWhole) return g;  // three blocks or less end before that
    if constexpr (kBytesOfAll % 64 == 16)
      g.second = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i*)(p + 64)));
    if constexpr (format == WeightFormat::q4_0) g.second = _mm512_castsi128_si512(_mm_loadu_si64(p + 64));
    if constexpr (format == WeightFormat::q8_0) g.last = _mm512_castsi128_si512(_mm_loadu_si64(p + 128));
    return g;
  }

  // Where word j of block c is, for j from first_word on.
  FASTGEN_INLINE U16 words_from(int first_word) {
    U16 i;
    for (int n = 0; n < 32; ++n) i[n] = n / 8 * (L::kSize / 2) + first_word + n % 8;
    return i;
  }

  // Words first_word .. first_word + 7 of each block.
  FASTGEN_INLINE __m512i words_of(const Group& g, int first_word) {
    return _mm512_permutex2var_epi16(g.first, (__m512i)words_from(first_word), g.second);
  }

  FASTGEN_INLINE void widen(const Group& g, I16 (&words)[4]) {
    constexpr int kHead = L::kHead / 2;
    const U16 low = (U16)words_of(g, kHead);
    if constexpr (L::kNibbles) return widen_nibbles(low, words);
    __m512i high = words_of(g, kHead + 8);
    if constexpr (format == WeightFormat::q8_0)  // its last four words begin the third 64 bytes
      high = _mm512_mask_permutexvar_epi64(high, 0x80, _mm512_setzero_si512(), g.last);
    widen_bytes((I16)low, (I16)high, words);
  }

  // Word 4 c + o, and from the 16th word on the same of the second numbers: heads of block c of output o.
  FASTGEN_INLINE __m512i heads(const Group (&g)[kQuad]) {
    if constexpr (L::kNibbles) {  // they begin in the first 64 bytes: two outputs at a time
      U16 from;
      for (int n = 0; n < 32; ++n) from[n] = n % 16 / 4 * (L::kSize / 2) + n / 16 + n % 2 * 32;
      return _mm512_mask_blend_epi16(0xCCCCCCCC,
                                     _mm512_permutex2var_epi16(g[0].first, (__m512i)from, g[1].first),
                                     _mm512_permutex2var_epi16(g[2].first, (__m512i)from, g[3].first));
    }
    U16 from;
    for (int n = 0; n < 32; ++n) from[n] = n % 16 / 4 * (L::kSize / 2) + n / 16;
    __m512i all = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int o = 0; o < kQuad; ++o)
      all = _mm512_mask_mov_epi16(all, 0x11111111u << o,
                                  _mm512_permutex2var_epi16(g[o].first, (__m512i)from, g[o].second));
    return all;
  }

  FASTGEN_INLINE void scales(const Group (&g)[kQuad], F32& d, F32& m) {
    const __m512i all = heads(g);
    d = (F32)_mm512_cvtph_ps(_mm512_castsi512_si256(all));
    if constexpr (L::kHasMin) m = (F32)_mm512_cvtph_ps(_mm512_extracti64x4_epi64(all, 1));
  }
};

#else

// As many blocks as a vector has blocks of 128 bits.
template <WeightFormat format>
struct Group {
  using L = BlockLayout<format>;
  const uint8_t* begin;

  template <bool kWhole>
  FASTGEN_INLINE Group read(const uint8_t* p, int64_t) {
    return {p};
  }

  FASTGEN_INLINE void widen(const Group& g, I16 (&words)[4]) {
    const auto low = [g](int i) { return g.begin + i * L::kSize + L::kHead; };
    const auto high = [low](int i) { return low(i) + 16; };
    if constexpr (L::kNibbles) return widen_nibbles(load_lanes(low), words);
    if constexpr (!L::kNibbles) widen_bytes((I16)load_lanes(low), (I16)load_lanes(high), words);
  }

  FASTGEN_INLINE void scales(const Group (&g)[kQuad], F32& d, F32& m) {
    U32 heads;
#pragma GCC unroll 8
    for (int i = 0; i < kLanes32; ++i) {
      const uint8_t* head = g[i % kQuad].begin + i / kQuad * L::kSize;
      uint32_t both = 0;
      memcpy(&both, head, L::kHasMin ? 4 : 2);
      heads[i] = both;
    }
    d = widen_halves(heads & 0xFFFFu);
    if constexpr (L::kHasMin) m = widen_halves(heads >> 16);
  }
};

#endif

}  // namespace fastgen::FASTGEN_ISA
