// Passes over a row of logits. Masses are integers, so their sums are the same in any order.
#pragma once
#include <algorithm>
#include <vector>

#include "philox_simd.h"
#include "random.h"

namespace fastgen::FASTGEN_ISA {

constexpr float kLargest = 0x1.fffffep127f, kMinusInfinity = -__builtin_inff();

// z to y = (z - largest) / temperature, 0 or below; +inf counts as the largest float.
struct Scale {
  float largest, inverse;

  FASTGEN_MEMBER F32 of(F32 z) const { return (minimum(z, broadcast(kLargest)) - largest) * inverse; }
  FASTGEN_MEMBER float of(float z) const { return ((z < kLargest ? z : kLargest) - largest) * inverse; }
};

// Calls visit(vector, index of its first lane) for the whole row, whose last vector is filled up with -inf.
template <class Visit>
FASTGEN_INLINE void for_each_vector(const float* z, int64_t n, Visit visit) {
  int64_t i = 0;
  for (; i + kLanes32 <= n; i += kLanes32) visit(load<F32>(z + i), i);
  if (i < n) {
    float tail[kLanes32];
    std::fill(tail, tail + kLanes32, kMinusInfinity);
    memcpy(tail, z + i, (n - i) * sizeof *z);
    visit(load<F32>(tail), i);
  }
}

// Calls visit(index) for each lane that is set.
template <class Mask, class Visit>
FASTGEN_INLINE void for_each_lane(Mask mask, int64_t first, Visit visit) {
  for (uint32_t lanes = nonzero_lanes((U32)mask); lanes; lanes &= lanes - 1)
    visit(first + __builtin_ctz(lanes));
}

struct Extremes {
  float largest;
  bool has_nan;
};

static Extremes extremes(const float* z, int64_t n) {
  F32 largest = broadcast(kMinusInfinity);
  I32 nan{};
  for_each_vector(z, n, [&](F32 x, int64_t) {
    largest = maximum(x, largest);
    nan |= x != x;
  });
  float found = kMinusInfinity;
  for (int lane = 0; lane < kLanes32; ++lane) found = std::max<float>(found, largest[lane]);
  return {std::min(found, kLargest), any_bit((U32)nan)};
}

// The first token whose logit is `largest`, which the row has.
static int64_t first_of(const float* z, int64_t n, float largest) {
  int64_t i = 0;
  for (; i + kLanes32 <= n; i += kLanes32)
    if (const uint32_t lanes = nonzero_lanes((U32)(load<F32>(z + i) >= broadcast(largest))))
      return i + __builtin_ctz(lanes);
  while (z[i] < largest) ++i;
  return i;
}

// Multiples of 2^-40 nearest to numbers of [-1, 1]: a double between 4096 and 8192 has no finer bits.
constexpr double kFixedPoint = 6144;

FASTGEN_INLINE int64_t fixed_point(float x) {
  const double sum = x + kFixedPoint, none = kFixedPoint;
  int64_t bits, zero;
  memcpy(&bits, &sum, sizeof bits);
  memcpy(&zero, &none, sizeof zero);
  return bits - zero;
}

struct Masses {
  U64 low, high;  // of the lower and the upper half of the lanes
};

FASTGEN_INLINE Masses fixed_point(F32 x) {
#if defined(__AVX512F__)
  const F64 low = (F64)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)x));
  const F64 high = (F64)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)x, 1));
#elif defined(__AVX2__)
  const F64 low = (F64)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)x));
  const F64 high = (F64)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)x, 1));
#else
  typedef float HalfOfF32 __attribute__((vector_size(kBytes / 2)));
  HalfOfF32 half[2];
  memcpy(half, &x, sizeof x);
  const F64 low = __builtin_convertvector(half[0], F64), high = __builtin_convertvector(half[1], F64);
#endif
  const F64 zero = F64{} + kFixedPoint;
  return {(U64)(low + zero) - (U64)zero, (U64)(high + zero) - (U64)zero};
}

FASTGEN_INLINE int64_t sum_of_lanes(U64 x) {
  uint64_t sum = 0;
  for (int lane = 0; lane < kLanes64; ++lane) sum += x[lane];
  return static_cast<int64_t>(sum);
}

// The sum of exp(y) over the row, in fixed point.
static int64_t total_mass(const float* z, int64_t n, Scale scale) {
  U64 low{}, high{};
  for_each_vector(z, n, [&](F32 x, int64_t) {
    const Masses mass = fixed_point(exp_nonpositive<VectorLanes>(scale.of(x)));
    low += mass.low;
    high += mass.high;
  });
  return sum_of_lanes(low + high);
}

// The mass from which on nothing more is kept; at least 1, so that one token is kept.
FASTGEN_INLINE int64_t reached(double share, int64_t total) {
  const double limit = share * static_cast<double>(total);
  const int64_t whole = static_cast<int64_t>(limit);
  return std::max<int64_t>(whole + (static_cast<double>(whole) < limit ? 1 : 0), 1);
}

// A token that may be drawn. Those with smaller `order` come first; its low half is the token.
struct Candidate {
  uint64_t order;
  float y, weight;  // exp(y)

  FASTGEN_MEMBER uint32_t token() const { return static_cast<uint32_t>(order); }
  FASTGEN_MEMBER bool operator<(const Candidate& other) const { return order < other.order; }
};
using Candidates = std::vector<Candidate>;

// High logits first, of equal ones the lower tokens.
FASTGEN_INLINE uint64_t order_of(float z, int64_t token) {
  const int32_t bits = ScalarLanes::as_int((z < kLargest ? z : kLargest) + 0.0f);  // no negative zero
  const uint32_t ascending = static_cast<uint32_t>(bits < 0 ? ~bits : bits ^ INT32_MIN);
  return static_cast<uint64_t>(~ascending) << 32 | static_cast<uint32_t>(token);
}

// The k highest logits, in no order; `y` stays what the scale makes of them.
static void collect_top_k(const float* z, int64_t n, int64_t k, Scale scale, Candidates& found) {
  const size_t room = 4 * k + 64;
  float border = kMinusInfinity;
  const auto shrink = [&] {
    std::nth_element(found.begin(), found.begin() + (k - 1), found.end());
    border = z[found[k - 1].token()];
    found.resize(k);
  };
  for_each_vector(z, n, [&](F32 x, int64_t first) {
    for_each_lane(x > broadcast(border), first,
                  [&](int64_t i) { found.push_back({order_of(z[i], i), 0, 0}); });
    if (found.size() >= room) shrink();
  });
  if (found.size() > static_cast<size_t>(k)) shrink();
  for (Candidate& c : found) c.y = scale.of(z[c.token()]);
}

// All tokens with y >= lowest.
static void collect_above(const float* z, int64_t n, float lowest, Scale scale, Candidates& found) {
  for_each_vector(z, n, [&](F32 x, int64_t first) {
    const F32 y = scale.of(x);
    for_each_lane((y >= broadcast(lowest)) & (x > broadcast(kMinusInfinity)), first,
                  [&](int64_t i) { found.push_back({order_of(z[i], i), scale.of(z[i]), 0}); });
  });
}

// Buckets of y, 36 for a factor of e; the last holds what weighs nothing.
constexpr int kBuckets = 1024;

FASTGEN_INLINE I32 bucket_of(F32 y) {
  const F32 place = y * -36.0f, last = broadcast(kBuckets - 1);
  return VectorLanes::to_int(maximum(minimum(place, last), broadcast(0)));  // a bucket, whatever y is
}

struct Histogram {
  int64_t mass[kBuckets];
};

static void fill_histogram(const float* z, int64_t n, Scale scale, Histogram& histogram) {
  std::fill(histogram.mass, histogram.mass + kBuckets, 0);
  for_each_vector(z, n, [&](F32 x, int64_t) {
    const F32 y = scale.of(x);
    const Masses masses = fixed_point(exp_nonpositive<VectorLanes>(y));
    int32_t bucket[kLanes32];
    int64_t mass[kLanes32];
    store(bucket, bucket_of(y));
    store(mass, masses.low);
    store(mass + kLanes64, masses.high);
    for (int lane = 0; lane < kLanes32; ++lane) histogram.mass[bucket[lane]] += mass[lane];
  });
}

}  // namespace fastgen::FASTGEN_ISA
