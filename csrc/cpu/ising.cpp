// Half sweeps with lazy, exact acceptance: the random number of a spin is compared with its threshold from
// the highest bit on, 32 spins a word. After 8 of the 32 bit planes one spin in 256 is undecided; the words
// that still hold one wait in a queue, so that the later planes too are drawn for full vectors.
#include "ising.h"

#include "ising_rows.h"
#include "philox_simd.h"

namespace fastgen::FASTGEN_ISA {
namespace {

constexpr int kVectors = kBytes == 64 ? 2 : 1;  // vectors of words a step: as many as the registers hold
constexpr int kStep = kVectors * kLanes32;      // words a step
constexpr int64_t kChunk = 16 * kStep;          // words whose neighbours are prepared at a time
constexpr int kFirstBlocks = 2;                 // Philox blocks, of four planes each, that every word draws
constexpr int kPlanes = 32;

// The rule as masks: for each class of neighbour sums, which spins are up for certain and which ask their
// number.
template <int kClasses>
struct ClassRule {
  uint32_t certain[2][kClasses], asks[2][kClasses];  // by old spin: 0 or ~0
  U32 plane[kPlanes][kClasses];                      // bit q of the threshold, from the highest: 0 or ~0

  explicit FASTGEN_MEMBER ClassRule(const IsingRule& rule) {
    constexpr int kStride = kClasses == 5 ? 2 : 1;  // with four neighbours the sums are even
    for (int c = 0; c < kClasses; ++c) {
      const int64_t down = rule.up_below[0][kStride * c], up = rule.up_below[1][kStride * c];
      for (int old = 0; old < 2; ++old) {
        const int64_t below = old ? up : down;
        certain[old][c] = below == int64_t{1} << 32 ? ~0u : 0;
        asks[old][c] = below > 0 && !certain[old][c] ? ~0u : 0;
      }
      const uint32_t threshold = static_cast<uint32_t>(asks[0][c] ? down : up);  // equal where both ask
      for (int q = 0; q < kPlanes; ++q) plane[q][c] = U32{} - (threshold >> (31 - q) & 1);
    }
  }
};

// Words under decision: up so far, undecided, and which class each spin is of.
template <int kClasses>
struct Decision {
  U32 up, open, of_class[kClasses];

  FASTGEN_MEMBER void plane(const ClassRule<kClasses>& rule, int q, U32 number) {
    U32 threshold = of_class[0] & rule.plane[q][0];
#pragma GCC unroll 9
    for (int c = 1; c < kClasses; ++c) threshold |= of_class[c] & rule.plane[q][c];
    const U32 differs = number ^ threshold;
    up |= open & threshold & differs;
    open &= ~differs;
  }
};

// Four bit planes of kVectors vectors of groups.
template <int kClasses>
FASTGEN_INLINE void decide_block(const StreamVectors& stream, const ClassRule<kClasses>& rule,
                                 const U32 (&group)[kVectors], int block, Decision<kClasses> (&d)[kVectors]) {
  U64 number[2 * kVectors];
  BlockVector words[2 * kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const U64 first = (U64)(group[v] * 8 + static_cast<uint32_t>(block));
    number[2 * v] = first;            // groups in even lanes
    number[2 * v + 1] = first >> 32;  // groups in odd lanes
  }
  philox_blocks<2 * kVectors>(stream, number, words);
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v)
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p)
      d[v].plane(rule, 4 * block + p, (U32)join_low_halves(words[2 * v].word[p], words[2 * v + 1].word[p]));
}

// One bit of each of four neighbours, counted: classes by how many are up.
template <bool kOwnSpin>
FASTGEN_INLINE void classify(U32 up, U32 down, U32 same, U32 side, const U32*, U32 (&of_class)[5]) {
  const U32 half1 = up ^ down, carry1 = up & down, half2 = same ^ side, carry2 = same & side;
  const U32 ones = half1 ^ half2, carry = half1 & half2;
  const U32 twos = carry1 ^ carry2 ^ carry, four = carry1 & carry2;
  of_class[0] = ~(ones | twos | four);
  of_class[1] = ones & ~twos;
  of_class[2] = twos & ~ones;
  of_class[3] = ones & twos;
  of_class[4] = four;
}

// With free edges a neighbour that is missing counts half: class = 2 * (up) + (missing) = sum + 4.
template <bool kOwnSpin>
FASTGEN_INLINE void classify(U32 up, U32 down, U32 same, U32 side, const U32* missing, U32 (&of_class)[9]) {
  const U32 zero{};
  U32 count[4] = {zero, zero, zero, zero};  // a bit-sliced counter
  const auto add = [&](U32 bit, int place) {
    for (int p = place; p < 4; ++p) {
      const U32 carry = count[p] & bit;
      count[p] ^= bit;
      bit = carry;
    }
  };
  const U32 neighbour[4] = {up, down, same, side};
  for (int n = 0; n < 4; ++n) {
    add(neighbour[n] & ~missing[n], 1);
    add(missing[n], 0);
  }
  for (int c = 0; c < 9; ++c) {
    of_class[c] = ~zero;
    for (int p = 0; p < 4; ++p) of_class[c] &= c >> p & 1 ? count[p] : ~count[p];
  }
}

template <int kClasses, bool kOwnSpin>
FASTGEN_INLINE Decision<kClasses> begin(const ClassRule<kClasses>& rule, U32 own, U32 valid,
                                        const U32 (&of_class)[kClasses]) {
  Decision<kClasses> d;
  d.up = U32{};
  d.open = U32{};
#pragma GCC unroll 9
  for (int c = 0; c < kClasses; ++c) {
    const U32 certain =
        kOwnSpin ? (own & rule.certain[1][c]) | (~own & rule.certain[0][c]) : U32{} + rule.certain[0][c];
    const U32 asks = kOwnSpin ? (own & rule.asks[1][c]) | (~own & rule.asks[0][c]) : U32{} + rule.asks[0][c];
    d.up |= of_class[c] & certain;
    d.of_class[c] = of_class[c] & asks;
    d.open |= d.of_class[c];
  }
  d.open &= valid;
  return d;
}

// Words with spins that the first planes left open.
template <int kClasses>
class Queue {
 public:
  FASTGEN_MEMBER Queue(const StreamVectors& stream, const ClassRule<kClasses>& rule, uint32_t* plane)
      : stream_(stream), rule_(rule), plane_(plane) {}

  FASTGEN_MEMBER void push(const U32& group, const Decision<kClasses>& d) {
    uint32_t lanes[3 + kClasses][kLanes32];
    store(lanes[0], group);
    store(lanes[1], d.up);
    store(lanes[2], d.open);
    for (int c = 0; c < kClasses; ++c) store(lanes[3 + c], d.of_class[c]);
    for (uint32_t open = nonzero_lanes(d.open); open; open &= open - 1) {
      const int i = __builtin_ctz(open);
      for (int field = 0; field < 3 + kClasses; ++field) waiting_[field][count_] = lanes[field][i];
      if (++count_ == kStep) drain();
    }
  }

  FASTGEN_MEMBER void drain() {
    for (int i = count_; i < kStep; ++i)
      for (int field = 0; field < 3 + kClasses; ++field) waiting_[field][i] = 0;
    U32 group[kVectors];
    Decision<kClasses> d[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      group[v] = load<U32>(waiting_[0] + v * kLanes32);
      d[v].up = load<U32>(waiting_[1] + v * kLanes32);
      d[v].open = load<U32>(waiting_[2] + v * kLanes32);
      for (int c = 0; c < kClasses; ++c) d[v].of_class[c] = load<U32>(waiting_[3 + c] + v * kLanes32);
    }
    for (int block = kFirstBlocks; block < kPlanes / 4; ++block) {
      U32 open = d[0].open;
      for (int v = 1; v < kVectors; ++v) open |= d[v].open;
      if (!any_bit(open)) break;
      decide_block(stream_, rule_, group, block, d);
    }
    for (int v = 0; v < kVectors; ++v) store(waiting_[1] + v * kLanes32, d[v].up);
    for (int i = 0; i < count_; ++i) plane_[waiting_[0][i]] = waiting_[1][i];
    count_ = 0;
  }

 private:
  const StreamVectors& stream_;
  const ClassRule<kClasses>& rule_;
  uint32_t* plane_;
  int count_ = 0;
  uint32_t waiting_[3 + kClasses][kStep];
};

// What has to be looked up by row and bit: prepared for a chunk of words, then read by whole vectors.
template <bool kFree>
class Surroundings {
 public:
  uint32_t side[kChunk], valid[kChunk], missing[kFree ? 4 : 1][kFree ? kChunk : 1];

  // Rows without a partial word leave `valid` as it is here.
  Surroundings() { memset(valid, 0xFF, sizeof valid); }

  FASTGEN_MEMBER void fill(const IsingShape& shape, const IsingPlanes& planes, int colour, int64_t begin,
                           int64_t count) {
    const int64_t words = shape.words();
    int64_t r = begin / words, w = begin % words;
    for (int64_t i = 0; i < count; ++r, w = 0) {
      const IsingRow row(shape, planes, colour, r);
      const int64_t last = words - w < count - i ? words : w + count - i;
      row.side(w, last, side + i);
      if (kFree || !row.full()) fill_by_bit(row, w, last, i);
      i += last - w;
    }
    for (int64_t i = count; i % kStep; ++i) valid[i] = side[i] = 0;
  }

 private:
  FASTGEN_MEMBER void fill_by_bit(const IsingRow& row, int64_t first, int64_t last, int64_t i) {
    for (int64_t w = first; w < last; ++w, ++i) {
      valid[i] = row.valid(w);
      if constexpr (kFree) {
        missing[0][i] = row.missing_up();
        missing[1][i] = row.missing_down();
        missing[2][i] = row.missing_same(w);
        missing[3][i] = row.missing_side(w);
      }
    }
  }
};

template <bool kFree, bool kOwnSpin>
void half_sweep(const IsingShape& shape, const IsingRule& raw_rule, const Stream& raw_stream,
                IsingPlanes planes, int colour, int64_t first_row, int64_t last_row) {
  constexpr int kClasses = kFree ? 9 : 5;
  const ClassRule<kClasses> rule(raw_rule);
  const RoundKeys keys(raw_stream.seed());
  const StreamVectors stream(keys, raw_stream);
  const int64_t words = shape.words(), end = last_row * words;
  const uint32_t* other = planes.plane[1 - colour];
  uint32_t* plane = planes.plane[colour];
  Queue<kClasses> queue(stream, rule, plane);
  Surroundings<kFree> around;
  U32 lane{};
  for (int i = 0; i < kLanes32; ++i) lane[i] = i;

  for (int64_t chunk = first_row * words; chunk < end; chunk += kChunk) {
    const int64_t count = end - chunk < kChunk ? end - chunk : kChunk;
    around.fill(shape, planes, colour, chunk, count);
    for (int64_t step = 0; step < count; step += kStep) {
      U32 group[kVectors];
      Decision<kClasses> d[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const int64_t i = step + v * kLanes32;
        const uint32_t* same = other + chunk + i;
        U32 missing[4], of_class[kClasses];
        if constexpr (kFree)
          for (int n = 0; n < 4; ++n) missing[n] = load<U32>(around.missing[n] + i);
        classify<kOwnSpin>(load<U32>(same - words), load<U32>(same + words), load<U32>(same),
                           load<U32>(around.side + i), missing, of_class);
        const U32 valid = load<U32>(around.valid + i);
        group[v] = lane + static_cast<uint32_t>(chunk + i);
        d[v] = begin<kClasses, kOwnSpin>(rule, load<U32>(plane + chunk + i), valid, of_class);
        d[v].up &= valid;
      }
      for (int block = 0; block < kFirstBlocks; ++block) decide_block(stream, rule, group, block, d);
      const int64_t left = count - step;
      if (left >= kStep) {
        for (int v = 0; v < kVectors; ++v) store(plane + chunk + step + v * kLanes32, d[v].up);
      } else {  // what follows belongs to the halo or to another thread
        uint32_t up[kStep];
        for (int v = 0; v < kVectors; ++v) store(up + v * kLanes32, d[v].up);
        for (int64_t i = 0; i < left; ++i) plane[chunk + step + i] = up[i];
      }
      for (int v = 0; v < kVectors; ++v)
        if (any_bit(d[v].open)) queue.push(group[v], d[v]);
    }
  }
  queue.drain();
}

}  // namespace

void ising_half_sweep(const IsingShape& shape, const IsingRule& rule, bool own_spin, const Stream& stream,
                      IsingPlanes planes, int colour, int64_t first_row, int64_t last_row) {
  const auto run = shape.periodic ? (own_spin ? half_sweep<false, true> : half_sweep<false, false>)
                                  : (own_spin ? half_sweep<true, true> : half_sweep<true, false>);
  run(shape, rule, stream, planes, colour, first_row, last_row);
}

}  // namespace fastgen::FASTGEN_ISA
