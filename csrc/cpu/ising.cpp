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
constexpr int64_t kChunk = 256;                  // words that are prepared, decided and finished together

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
    for (int64_t i = count; i % kLanes32; ++i) valid[i] = side[i] = 0;
  }

  // Takes back the zeros behind the last word of a chunk.
  FASTGEN_MEMBER void forget(int64_t count) {
    for (int64_t i = count; i % kLanes32; ++i) valid[i] = ~0u;
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

// The decisions of a chunk after its first planes, and of those still open the rest.
template <int kClasses>
class Chunk {
 public:
  FASTGEN_MEMBER void put(int64_t i, const Decision<kClasses>& d) {
    store(up_ + i, d.up);
    store(open_ + i, d.open);
    for (int c = 0; c < kClasses; ++c) store(of_class_[c] + i, d.of_class[c]);
  }

  // Decides all of `count` words, which are `first` and the following of the lattice.
  FASTGEN_MEMBER void finish(const StreamVectors& stream, const ClassRule<kClasses>& rule, uint32_t first,
                             int64_t count) {
    const int64_t waiting = list_open(count);
    for (int64_t begin = 0; begin < waiting; begin += kLanes32) {
      const uint32_t* place = waiting_ + begin;
      const U32 word = load<U32>(place) + first;
      Decision<kClasses> d;
      d.up = gather(up_, place);
      d.open = gather(open_, place);
      for (int c = 0; c < kClasses; ++c) d.of_class[c] = gather(of_class_[c], place);
      for (int block = kFirstBlocks; block < kPlanes / kPlanesOfBlock && any_bit(d.open); ++block)
        decide<1>(stream, rule, word, block, d);
      for (int i = 0; i < kLanes32; ++i) up_[place[i]] = d.up[i];
    }
  }

  FASTGEN_MEMBER const uint32_t* up() const { return up_; }

 private:
  static FASTGEN_MEMBER U32 gather(const uint32_t* from, const uint32_t* place) {
    uint32_t lanes[kLanes32];
    for (int i = 0; i < kLanes32; ++i) lanes[i] = from[place[i]];
    return load<U32>(lanes);
  }

  // Fills the last vector with a word that is decided already.
  FASTGEN_MEMBER int64_t list_open(int64_t count) {
    int64_t waiting = 0;
    for (int64_t i = 0; i < count; ++i) {
      waiting_[waiting] = static_cast<uint32_t>(i);
      waiting += open_[i] != 0;
    }
    up_[kChunk] = open_[kChunk] = 0;
    for (int64_t i = waiting; i % kLanes32; ++i) waiting_[i] = kChunk;
    return waiting;
  }

  uint32_t up_[kChunk + 1], open_[kChunk + 1], of_class_[kClasses][kChunk + 1];
  uint32_t waiting_[kChunk + kLanes32];
};

// What half sweeps of one chain share.
template <bool kFree, bool kOwnSpin>
class HalfSweeps {
 public:
  static constexpr int kClasses = kFree ? 9 : 5;

  HalfSweeps(const IsingShape& shape, const IsingRule& rule, uint64_t seed, IsingPlanes planes)
      : shape_(shape), planes_(planes), rule_(rule), keys_(seed) {
    for (int i = 0; i < kLanes32; ++i) lane_[i] = i;
  }

  void run(const Stream& raw_stream, int colour, int64_t first_row, int64_t last_row) {
    const StreamVectors stream(keys_, raw_stream);
    const int64_t words = shape_.words(), end = last_row * words;
    uint32_t* plane = planes_.plane[colour];
    for (int64_t first = first_row * words; first < end; first += kChunk) {
      const int64_t count = end - first < kChunk ? end - first : kChunk;
      around_.fill(shape_, planes_, colour, first, count);
      for (int64_t i = 0; i < count; i += kLanes32) {
        const uint32_t* same = planes_.plane[1 - colour] + first + i;
        U32 missing[4], of_class[kClasses];
        if constexpr (kFree)
          for (int n = 0; n < 4; ++n) missing[n] = load<U32>(around_.missing[n] + i);
        classify(load<U32>(same - words), load<U32>(same + words), load<U32>(same),
                 load<U32>(around_.side + i), missing, of_class);
        Decision<kClasses> d = begin<kClasses, kOwnSpin>(rule_, load<U32>(plane + first + i),
                                                         load<U32>(around_.valid + i), of_class);
        decide<kFirstBlocks>(stream, rule_, lane_ + static_cast<uint32_t>(first + i), 0, d);
        chunk_.put(i, d);
      }
      chunk_.finish(stream, rule_, static_cast<uint32_t>(first), count);
      memcpy(plane + first, chunk_.up(), count * sizeof(uint32_t));
      around_.forget(count);
    }
  }

 private:
  const IsingShape& shape_;
  IsingPlanes planes_;
  ClassRule<kClasses> rule_;
  RoundKeys keys_;
  U32 lane_;
  Surroundings<kFree> around_;
  Chunk<kClasses> chunk_;
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
