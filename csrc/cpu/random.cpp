#include "random.h"

#include "philox_simd.h"

namespace fastgen::FASTGEN_ISA {
namespace {

constexpr int kVectors = 2;                   // vectors of blocks in flight
constexpr int kBlocks = kVectors * kLanes64;  // blocks a step
constexpr int kWords = 4 * kBlocks;           // numbers a step

// A vector of blocks as two vectors in the order of elements: words 0 and 1 of each block, and words 2 and 3.
struct PairVector {
  U64 front, back;
};

struct ToBits {
  FASTGEN_INLINE PairVector apply(const BlockVector& x) {
    return {join_low_halves(x.word[0], x.word[1]), join_low_halves(x.word[2], x.word[3])};
  }
};

struct ToUniform {
  FASTGEN_INLINE PairVector apply(const BlockVector& x) {
    const PairVector words = ToBits::apply(x);
    return {(U64)uniform_from_word<VectorLanes>((I32)words.front),
            (U64)uniform_from_word<VectorLanes>((I32)words.back)};
  }
};

struct ToNormal {
  FASTGEN_INLINE PairVector apply(const BlockVector& x) {
    // Each pair of words gives a pair of normals: radii from words 0 and 2, angles from words 1 and 3.
    const I32 radius = (I32)join_low_halves(x.word[0], x.word[2]);
    const I32 angle = (I32)join_low_halves(x.word[1], x.word[3]);
    const NormalPair<VectorLanes> pair = normal_from_words<VectorLanes>(radius, angle);
    const U64 first = (U64)pair.first, second = (U64)pair.second;
    return {join_low_halves(first, second), join_low_halves(first >> 32, second >> 32)};
  }
};

template <class Transform>
FASTGEN_INLINE void draw_step(const StreamVectors& stream, U64 first_block, void* out) {
  U64 block[kVectors];
  BlockVector words[kVectors];
  for (int v = 0; v < kVectors; ++v) block[v] = first_block + static_cast<uint64_t>(v * kLanes64);
  philox_blocks<kVectors>(stream, block, words);
  for (int v = 0; v < kVectors; ++v) {
    const PairVector pairs = Transform::apply(words[v]);
    U64 low, high;
    interleave64(pairs.front, pairs.back, low, high);
    char* place = static_cast<char*>(out) + 2 * v * kBytes;
    store(place, low);
    store(place + kBytes, high);
  }
}

template <class Transform, class T>
FASTGEN_INLINE void draw(const Stream& stream, int64_t first_block, int64_t count, T* out) {
  const RoundKeys keys(stream.seed());
  const StreamVectors vectors(keys, stream);
  U64 block = iota64() + static_cast<uint64_t>(first_block);
  int64_t done = 0;
  for (; done + kWords <= count; done += kWords, block += kBlocks)
    draw_step<Transform>(vectors, block, out + done);
  if (done < count) {
    T tail[kWords];
    draw_step<Transform>(vectors, block, tail);
    memcpy(out + done, tail, (count - done) * sizeof(T));
  }
}

}  // namespace

void bits(const Stream& stream, int64_t first_block, int64_t count, uint32_t* out) {
  draw<ToBits>(stream, first_block, count, out);
}

void uniform(const Stream& stream, int64_t first_block, int64_t count, float* out) {
  draw<ToUniform>(stream, first_block, count, out);
}

void normal(const Stream& stream, int64_t first_block, int64_t count, float* out) {
  draw<ToNormal>(stream, first_block, count, out);
}

void bernoulli(const Stream& stream, int64_t first_block, int64_t count, const double* p, int64_t stride,
               bool* out) {
  constexpr int64_t kPiece = 4 * kWords;
  uint32_t words[kPiece];
  for (int64_t done = 0; done < count; done += kPiece) {
    const int64_t piece = count - done < kPiece ? count - done : kPiece;
    bits(stream, first_block + done / 4, piece, words);
    if (stride == 0) {
      const uint64_t threshold = bernoulli_threshold(*p);
      const uint32_t last = static_cast<uint32_t>(threshold - 1);  // the largest word that is accepted
      for (int64_t i = 0; i < piece; ++i) out[done + i] = words[i] <= last;
      if (threshold == 0) memset(out + done, 0, piece);
    } else {
      for (int64_t i = 0; i < piece; ++i) out[done + i] = words[i] < p[(done + i) * stride] * 4294967296.0;
    }
  }
}

}  // namespace fastgen::FASTGEN_ISA
