// Products with panels of float32 or bfloat16 weights: lanes run along outputs, and every output is one chain
// of FMAs over the inputs, whatever is computed beside it.
#pragma once
#include "ahead.h"
#include "packed_words.h"

namespace fastgen::FASTGEN_ISA {

constexpr int kPanelParts = kPanel / kLanes32;  // vectors of a panel

#if defined(__AVX512F__)
constexpr int kFloatRows = 6;
#elif defined(__AVX2__)
constexpr int kFloatRows = 6;
#else
constexpr int kFloatRows = 3;
#endif

constexpr int64_t kTogether = 1 << 18;  // bytes of panels that all rows go through

// Panels whose sums are in registers together with those of R rows.
template <int R>
constexpr int kFloatPanels = kBytes == 64   ? 4
                             : kBytes == 32 ? (R == 1  ? 4
                                               : R < 4 ? 2
                                                       : 1)
                             : R == 1       ? 2
                                            : 1;

// Input k of a panel. Halves of bfloat16 are put into the upper halves of lanes by one permutation; with AVX2
// within 128 bits, so that lanes 4 to 7 and 8 to 11 change places until they are stored.
FASTGEN_INLINE void load_panel(const float* w, F32 (&to)[kPanelParts]) {
#pragma GCC unroll 4
  for (int v = 0; v < kPanelParts; ++v) to[v] = load<F32>(w + v * kLanes32);
}
FASTGEN_INLINE void load_panel(const BFloat16* w, F32 (&to)[kPanelParts]) {
#if defined(__AVX512F__)
  U16 from;
  for (int i = 0; i < 32; ++i) from[i] = i / 2;
  const __m512i halves = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)w));
  to[0] = (F32)_mm512_maskz_permutexvar_epi16(0xAAAAAAAA, (__m512i)from, halves);
#elif defined(__AVX2__)
  const __m256i halves = _mm256_loadu_si256((const __m256i*)w);
  to[0] = (F32)_mm256_unpacklo_epi16(_mm256_setzero_si256(), halves);
  to[1] = (F32)_mm256_unpackhi_epi16(_mm256_setzero_si256(), halves);
#elif defined(__x86_64__)
#pragma GCC unroll 2
  for (int v = 0; v < kPanelParts; v += 2) {
    const __m128i halves = _mm_loadu_si128((const __m128i*)(w + v * kLanes32));
    to[v] = (F32)_mm_unpacklo_epi16(_mm_setzero_si128(), halves);
    to[v + 1] = (F32)_mm_unpackhi_epi16(_mm_setzero_si128(), halves);
  }
#else
  typedef uint16_t Halves __attribute__((vector_size(kBytes / 2)));
#pragma GCC unroll 4
  for (int v = 0; v < kPanelParts; ++v)
    to[v] = (F32)(__builtin_convertvector(load<Halves>(w + v * kLanes32), U32) << 16);
#endif
}
template <class W>
FASTGEN_INLINE void restore_order([[maybe_unused]] F32 (&sums)[kPanelParts]) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (sizeof(W) == 2) {
    const __m256 a = (__m256)sums[0], b = (__m256)sums[1];
    sums[0] = (F32)_mm256_permute2f128_ps(a, b, 0x20);
    sums[1] = (F32)_mm256_permute2f128_ps(a, b, 0x31);
  }
#endif
}

// Sums of R rows by P panels, to y.
template <int R, int P, class W>
static void float_tile(const float* x, int64_t x_stride, const W* weight, int64_t inputs, float* y,
                       int64_t y_stride, int64_t outputs, Ahead& next) {
  Ahead ahead = next;  // in registers
  F32 acc[R][P][kPanelParts] = {};
  const float* third = x + 3 * x_stride;  // rows are reached from two pointers and one stride
  for (int64_t k = 0; k < inputs; ++k) {
    ahead.step();
    F32 w[P][kPanelParts];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) load_panel(weight + (p * inputs + k) * kPanel, w[p]);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const F32 one = in_all_lanes(r < 3 ? x[k + r * x_stride] : third[k + (r - 3) * x_stride]);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < kPanelParts; ++v) acc[r][p][v] = multiply_add(one, w[p][v], acc[r][p][v]);
    }
  }
  next = ahead;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      restore_order<W>(acc[r][p]);
#pragma GCC unroll 4
      for (int v = 0; v < kPanelParts; ++v) {
        const int64_t first = p * kPanel + v * kLanes32, left = outputs - first;
        if (left >= kLanes32)
          store(y + r * y_stride + first, acc[r][p][v]);
        else if (left > 0)
          store_first(y + r * y_stride + first, acc[r][p][v], left);
      }
    }
}

// R rows by panels first .. last - 1.
template <int R, class W>
static void float_rows(const PackedLinear& task, int64_t row, int64_t first, int64_t last, Ahead& ahead) {
  constexpr int kP = kFloatPanels<R>;
  const float* x = task.x + row * task.x_stride;
  float* y = task.y + row * task.y_stride;
  const W* weight = static_cast<const W*>(task.weight);
  const auto tile = [&](auto panels, int64_t p) {
    float_tile<R, panels()>(x, task.x_stride, weight + p * task.inputs * kPanel, task.inputs, y + p * kPanel,
                            task.y_stride, task.outputs - p * kPanel, ahead);
  };
  int64_t p = first;
  for (; p + kP <= last; p += kP) tile(std::integral_constant<int, kP>{}, p);
  if constexpr (kP > 2)
    if (p + 2 <= last) tile(std::integral_constant<int, 2>{}, p), p += 2;
  for (; p < last; ++p) tile(std::integral_constant<int, 1>{}, p);
}

template <class W>
static void float_block(const PackedLinear& task, int64_t first_row, int64_t last_row, int64_t first,
                        int64_t last) {
  using Rows = void (*)(const PackedLinear&, int64_t, int64_t, int64_t, Ahead&);
  static constexpr Rows kRows[] = {float_rows<1, W>, float_rows<2, W>,
                                   float_rows<3, W>,
#if defined(__AVX2__)
                                   float_rows<4, W>, float_rows<5, W>,
                                   float_rows<6, W>
#endif
  };
  const int64_t rows = last_row - first_row, tiles = (rows + kFloatRows - 1) / kFloatRows;
  // Panels that stay in the second cache for all rows, together with those that come after them.
  const int64_t panel = task.inputs * kPanel * static_cast<int64_t>(sizeof(W));
  const int64_t together =
      tiles == 1 ? 4 : std::clamp<int64_t>(kTogether / std::max<int64_t>(panel, 1), 1, 4);
  for (int64_t p = first, end; p < last; p = end) {
    end = std::min(p + together, last);
    const int64_t after = std::min(end + together, task.panels()) - end;
    Ahead ahead(static_cast<const char*>(task.weight) + end * panel, after * panel, tiles * task.inputs);
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t begin = rows * t / tiles, count = rows * (t + 1) / tiles - begin;
      kRows[count - 1](task, first_row + begin, p, end, ahead);
    }
  }
}

}  // namespace fastgen::FASTGEN_ISA
