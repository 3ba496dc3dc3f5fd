// Half sweeps with lazy, exact acceptance: the random number of a spin is compared with its threshold from
// the highest bit on, 32 spins a word. After 8 of the 32 bit planes one spin in 256 is undecided; the words
// that still hold one are gathered, so that the later planes too are drawn for full vectors.
#include "ising.h"

#include "ising_rows.h"
#include "philox_simd.h"

namespace fastgen::FASTGEN_ISA {
namespace {

constexpr int kPlanes = 32, kPlanesOfBlock = 4;  // a Philox block is four planes of a word
constexpr int kFirstBlocks = 2;                  // blocks that every word draws, both in flight at once

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

// Planes of N blocks, from `block` on, for a vector of words.
template <int N, int kClasses>
FASTGEN_INLINE void decide(const StreamVectors& stream, const ClassRule<kClasses>& rule, U32 word, int block,
                           Decision<kClasses>& d) {
  U64 number[2 * N];
  BlockVector drawn[2 * N];
#pragma GCC unroll 2
  for (int n = 0; n < N; ++n) {
    const U64 both = (U64)(word * (kPlanes / kPlanesOfBlock) + static_cast<uint32_t>(block + n));
    number[2 * n] = both;            // words in even lanes
    number[2 * n + 1] = both >> 32;  // words in odd lanes
  }
  philox_blocks<2 * N>(stream, number, drawn);
#pragma GCC unroll 2
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
    for (int p = 0; p < kPlanesOfBlock; ++p)
      d.plane(rule, kPlanesOfBlock * (block + n) + p,
              (U32)join_low_halves(drawn[2 * n].word[p], drawn[2 * n + 1].word[p]));
}

// One bit of each of four neighbours, counted: classes by how many are up.
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
  d.up &= valid;
  d.open &= valid;
  return d;
}

// The words of one colour in the order of memory, a vector of them at a time, and the neighbours of their
// sites (see ising_rows.h, whose IsingRow says the same of one row).
template <bool kFree>
class Neighbours {
 public:
  FASTGEN_MEMBER Neighbours(const IsingShape& shape, const IsingPlanes& planes, int colour, int64_t first)
      : other_(planes.plane[1 - colour] + first), words_(static_cast<int32_t>(shape.words())) {
    const int64_t width = shape.width, before = 32 * (shape.words() - 1);  // sites before the last word
    for (int i = 0; i < kLanes32; ++i) {
      column_[i] = static_cast<int32_t>((first + i) % words_);
      row_[i] = static_cast<int32_t>((first + i) / words_);
    }
    colour_ = I32{} + colour;
    last_row_ = static_cast<int32_t>(shape.height - 1);
    end_ = static_cast<int>((width / 2 - 1) % 32);
    for (int shift = 0; shift < 2; ++shift)
      beyond_[shift] = broadcast32(bits_from((width + 1 - shift) / 2 - before));
    no_same_ = broadcast32(bits_from(width / 2 - before));
    no_side_ = broadcast32(bits_from((width - 1) / 2 - before));
  }

  U32 up, down, same, side, valid, missing[4];  // missing, with free edges: of each, where there is none

  // Those of the next words.
  FASTGEN_MEMBER void step() {
    const U32 is_first = (U32)(column_ == 0), is_last = (U32)(column_ == words_ - 1);
    const U32 right = (U32) - ((row_ + colour_) & 1);  // whether the fourth neighbour is the one to the right
    same = load<U32>(other_);
    up = load<U32>(other_ - words_);
    down = load<U32>(other_ + words_);
    U32 before = load<U32>(other_ - 1) >> 31, after = load<U32>(other_ + 1) << 31;
    if constexpr (!kFree) {  // around the row; with free edges what is taken here is missing
      before = choose(is_first, load<U32>(other_ + words_ - 1) >> end_ & 1, before);
      after = choose(is_last, (load<U32>(other_ - words_ + 1) & 1) << end_, after);
    }
    side = choose(right, same >> 1 | after, same << 1 | before);
    valid = ~(is_last & choose(right, beyond_[1], beyond_[0]));
    if constexpr (kFree) {
      missing[0] = (U32)(row_ == 0);
      missing[1] = (U32)(row_ == last_row_);
      missing[2] = is_last & ~right & no_same_;
      missing[3] = choose(right, is_last & no_side_, is_first & 1);
    }
    other_ += kLanes32;
    column_ += kLanes32 % words_;
    row_ += kLanes32 / words_;
    const I32 over = column_ >= words_;
    column_ -= over & words_;
    row_ -= over;
  }

 private:
  static FASTGEN_MEMBER U32 choose(U32 mask, U32 yes, U32 no) { return (mask & yes) | (~mask & no); }

  const uint32_t* other_;
  int32_t words_, last_row_;
  int end_;  // bit of the last site of a periodic row in its word
  I32 column_, row_, colour_;
  U32 beyond_[2], no_same_, no_side_;
};

// Words that their first planes left open, until there are enough of them for full vectors.
template <int kClasses>
class Waiting {
 public:
  FASTGEN_MEMBER bool full() const { return count_ > kMost - kLanes32; }

  FASTGEN_MEMBER void put(U32 word, const Decision<kClasses>& d) {
    U32 rows[kRows] = {word, d.open};
    for (int c = 0; c < kClasses; ++c) rows[2 + c] = d.of_class[c];
    const uint32_t lanes = nonzero_lanes(d.open);
    store_lanes(rows, lanes, rows_[0] + count_, kStride);
    count_ += __builtin_popcount(lanes);
  }

  // Decides the words of all full vectors, or simply all, and adds what is up to `plane`.
  FASTGEN_MEMBER void finish(const StreamVectors& stream, const ClassRule<kClasses>& rule, uint32_t* plane,
                             bool all) {
    for (; all && count_ % kLanes32; ++count_) rows_[0][count_] = rows_[0][0], rows_[1][count_] = 0;
    int64_t done = 0;
    for (; done + kLanes32 <= count_; done += kLanes32) {
      const U32 word = load<U32>(rows_[0] + done);
      Decision<kClasses> d;
      d.up = U32{};
      d.open = load<U32>(rows_[1] + done);
      for (int c = 0; c < kClasses; ++c) d.of_class[c] = load<U32>(rows_[2 + c] + done);
      for (int block = kFirstBlocks; block < kPlanes / kPlanesOfBlock && any_bit(d.open); ++block)
        decide<1>(stream, rule, word, block, d);
      for (int i = 0; i < kLanes32; ++i) plane[word[i]] |= d.up[i];
    }
    count_ -= done;
    for (int r = 0; r < kRows; ++r) store(rows_[r], load<U32>(rows_[r] + done));
  }

 private:
  static constexpr int64_t kMost = 256, kStride = kMost + kLanes32;
  static constexpr int kRows = 2 + kClasses;  // the word's number, its open bits, its classes
  int64_t count_ = 0;
  uint32_t rows_[kRows][kStride];
};

// What half sweeps of one chain share.
template <bool kFree, bool kOwnSpin>
class HalfSweeps {
 public:
  static constexpr int kClasses = kFree ? 9 : 5;

  HalfSweeps(const IsingShape& shape, const IsingRule& rule, uint64_t seed, IsingPlanes planes)
      : shape_(shape), planes_(planes), rule_(rule), keys_(seed) {}

  void run(const Stream& raw_stream, int colour, int64_t first_row, int64_t last_row) {
    const StreamVectors stream(keys_, raw_stream);
    const int64_t first = first_row * shape_.words(), end = last_row * shape_.words();
    uint32_t* plane = planes_.plane[colour];
    Neighbours<kFree> around(shape_, planes_, colour, first);
    U32 word = broadcast32(static_cast<uint32_t>(first));
    for (int i = 0; i < kLanes32; ++i) word[i] += i;
    for (int64_t i = first; i < end; i += kLanes32, word += kLanes32) {
      around.step();
      U32 of_class[kClasses];
      classify(around.up, around.down, around.same, around.side, around.missing, of_class);
      const int64_t count = smaller(kLanes32, end - i);
      Decision<kClasses> d =
          begin<kClasses, kOwnSpin>(rule_, load_first<U32>(plane + i, count), around.valid, of_class);
      decide<kFirstBlocks>(stream, rule_, word, 0, d);
      if (count < kLanes32) d.open &= (U32)((I32)word < static_cast<int32_t>(end));
      store_first(plane + i, d.up, count);
      waiting_.put(word, d);
      if (waiting_.full()) waiting_.finish(stream, rule_, plane, false);
    }
    waiting_.finish(stream, rule_, plane, true);
  }

 private:
  const IsingShape& shape_;
  IsingPlanes planes_;
  ClassRule<kClasses> rule_;
  RoundKeys keys_;
  Waiting<kClasses> waiting_;
};

// Calls work(half sweeps) with those of the right kind.
template <class Work>
FASTGEN_INLINE void with_half_sweeps(const IsingShape& shape, const IsingRule& rule, bool own_spin,
                                     uint64_t seed, IsingPlanes planes, const Work& work) {
  if (shape.periodic && own_spin) {
    HalfSweeps<false, true> sweeps(shape, rule, seed, planes);
    work(sweeps);
  } else if (shape.periodic) {
    HalfSweeps<false, false> sweeps(shape, rule, seed, planes);
    work(sweeps);
  } else if (own_spin) {
    HalfSweeps<true, true> sweeps(shape, rule, seed, planes);
    work(sweeps);
  } else {
    HalfSweeps<true, false> sweeps(shape, rule, seed, planes);
    work(sweeps);
  }
}

}  // namespace

void ising_half_sweep(const IsingShape& shape, const IsingRule& rule, bool own_spin, const Stream& stream,
                      IsingPlanes planes, int colour, int64_t first_row, int64_t last_row) {
  with_half_sweeps(shape, rule, own_spin, stream.seed(), planes,
                   [&](auto& sweeps) { sweeps.run(stream, colour, first_row, last_row); });
}

void ising_sweeps(const IsingShape& shape, const IsingRule& rule, bool own_spin, uint64_t seed,
                  int64_t sample_id, int64_t first, int64_t last, IsingPlanes planes) {
  with_half_sweeps(shape, rule, own_spin, seed, planes, [&](auto& sweeps) {
    for (int64_t step = 2 * first; step < 2 * last; ++step) {
      const int colour = static_cast<int>(step & 1);
      sweeps.run(Stream(seed, sample_id, static_cast<uint32_t>(step), kIsingStream), colour, 0, shape.height);
      ising_halo(shape, planes, colour);
    }
  });
}

}  // namespace fastgen::FASTGEN_ISA
