#include "random.h"

#include "in_step.h"
#include "philox_simd.h"

namespace fastgen::FASTGEN_ISA {
namespace {

// A vector of blocks as two vectors in the order of elements: words 0 and 1 of each block, and words 2 and 3.
struct PairVector {
  U64 front, back;
};

// N vectors of blocks in step: one alone would wait for its multiplications.
struct ToBits {
  template <int N>
  FASTGEN_INLINE void apply(const BlockVector (&x)[N], PairVector (&out)[N]) {
    for (int v = 0; v < N; ++v)
      out[v] = {join_low_halves(x[v].word[0], x[v].word[1]), join_low_halves(x[v].word[2], x[v].word[3])};
  }
};

struct ToUniform {
  template <int N>
  FASTGEN_INLINE void apply(const BlockVector (&x)[N], PairVector (&out)[N]) {
    ToBits::apply(x, out);
    for (PairVector& words : out)
      words = {(U64)uniform_from_word<VectorLanes>((I32)words.front),
               (U64)uniform_from_word<VectorLanes>((I32)words.back)};
  }
};

struct ToNormal {
  template <int N>
  FASTGEN_INLINE void apply(const BlockVector (&x)[N], PairVector (&out)[N]) {
    // Each pair of words gives a pair of normals: radii from words 0 and 2, angles from words 1 and 3.
    const auto words = [&](int first) {
      return each<N, I32>(
          [&](int v) { return (I32)join_low_halves(x[v].word[first], x[v].word[first + 2]); });
    };
    const auto pair = normal_from_words<InStep<N>>(words(0), words(1));
    for (int v = 0; v < N; ++v) {
      const U64 first = (U64)pair.first.v[v], second = (U64)pair.second.v[v];
      out[v] = {join_low_halves(first, second), join_low_halves(first >> 32, second >> 32)};
    }
  }
};

template <class Transform, int N, bool PAST_CACHES>
FASTGEN_INLINE void draw_step(const StreamVectors& vectors, U64 first_block, void* out) {
  U64 block[N];
  BlockVector words[N];
  PairVector pairs[N];
  for (int v = 0; v < N; ++v) block[v] = first_block + static_cast<uint64_t>(v * kLanes64);
  philox_blocks<N>(vectors, block, words);
  Transform::apply(words, pairs);
  for (int v = 0; v < N; ++v) {
    U64 low, high;
    interleave64(pairs[v].front, pairs[v].back, low, high);
    char* place = static_cast<char*>(out) + 2 * v * kBytes;
    PAST_CACHES ? stream(place, low) : store(place, low);
    PAST_CACHES ? stream(place + kBytes, high) : store(place + kBytes, high);
  }
}

// Writes whole steps of N vectors as long as they fit, and returns how many numbers these are.
template <class Transform, int N, bool PAST_CACHES, class T>
FASTGEN_INLINE int64_t draw_steps(const StreamVectors& vectors, U64 block, int64_t count, T* out) {
  constexpr int kBlocks = N * kLanes64, kWords = 4 * kBlocks;
  int64_t done = 0;
  for (; done + kWords <= count; done += kWords, block += kBlocks)
    draw_step<Transform, N, PAST_CACHES>(vectors, block, out + done);
  return done;
}

template <class Transform, bool PAST_CACHES, class T>
FASTGEN_INLINE void draw(const Stream& draws, int64_t first_block, int64_t count, T* out) {
  const RoundKeys keys(draws.seed());
  const StreamVectors vectors(keys, draws);
  const U64 block = iota64() + static_cast<uint64_t>(first_block);
  int64_t done = draw_steps<Transform, 4, PAST_CACHES>(vectors, block, count, out);
  done += draw_steps<Transform, 1, false>(vectors, block + static_cast<uint64_t>(done / 4), count - done,
                                          out + done);
  if (done < count) {
    T tail[4 * kLanes64];
    draw_step<Transform, 1, false>(vectors, block + static_cast<uint64_t>(done / 4), tail);
    memcpy(out + done, tail, (count - done) * sizeof(T));
  }
  if (PAST_CACHES) stream_fence();
}

template <class Transform, class T>
void draw(const Stream& draws, int64_t first_block, int64_t count, bool past_caches, T* out) {
  if (past_caches && reinterpret_cast<uintptr_t>(out) % kBytes == 0)
    draw<Transform, true>(draws, first_block, count, out);
  else
    draw<Transform, false>(draws, first_block, count, out);
}

}  // namespace

void bits(const Stream& stream, int64_t first_block, int64_t count, bool past_caches, uint32_t* out) {
  draw<ToBits>(stream, first_block, count, past_caches, out);
}

void uniform(const Stream& stream, int64_t first_block, int64_t count, bool past_caches, float* out) {
  draw<ToUniform>(stream, first_block, count, past_caches, out);
}

void normal(const Stream& stream, int64_t first_block, int64_t count, bool past_caches, float* out) {
  draw<ToNormal>(stream, first_block, count, past_caches, out);
}

void bernoulli(const Stream& stream, int64_t first_block, int64_t count, const double* p, int64_t stride,
               bool* out) {
  constexpr int64_t kPiece = 1024;
  uint32_t words[kPiece];
  for (int64_t done = 0; done < count; done += kPiece) {
    const int64_t piece = count - done < kPiece ? count - done : kPiece;
    bits(stream, first_block + done / 4, piece, false, words);
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
