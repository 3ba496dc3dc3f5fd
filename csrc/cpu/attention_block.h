// A block of queries, one in each lane: which rows of memory they are, what they see, and how numbers get
// from rows into lanes and back. Below each other stand what belongs to one element of a query, or to a key.
#pragma once
#include <algorithm>
#include <new>

#include "attention.h"
#include "attention_tile.h"
#include "fastgen/streams.h"
#include "philox_simd.h"
#include "stored.h"
#include "transpose.h"

namespace fastgen::FASTGEN_ISA {

template <class T>
constexpr int kLanesOf = Lane<VectorOf<T>>::kCount;
template <class T>
constexpr int kWidth = kVectors * kLanesOf<T>;  // queries of a block
constexpr int kKeys = kBytes == 64 ? 32 : 64;   // keys of a block: no number depends on it
constexpr double kHidden = -__builtin_inf();

// Memory of whole vectors, zeros at first; it grows and is never given back.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  ~Buffer() { release(); }
  T* of(int64_t count) {
    if (count > count_ || !memory_) {
      release();
      const size_t bytes = static_cast<size_t>(count) * sizeof(T) + kBytes;
      memory_ = static_cast<T*>(operator new(bytes, kAlignment));
      memset(static_cast<void*>(memory_), 0, bytes);
      count_ = count;
    }
    return memory_;
  }

 private:
  static constexpr std::align_val_t kAlignment{kBytes};
  void release() {
    operator delete(memory_, kAlignment);
    memory_ = nullptr, count_ = 0;
  }

  T* memory_ = nullptr;
  int64_t count_ = 0;
};

FASTGEN_INLINE int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }
template <class T>
FASTGEN_INLINE int64_t whole_vectors(int64_t count) {
  return ceiling(count, kLanesOf<T>) * kLanesOf<T>;
}

template <int count>
struct ByteVector {
  typedef uint8_t Type __attribute__((vector_size(count)));
};

// A vector from n numbers at `p`; a byte is 0 where it is not 0, and hides where it is.
template <class T, class S>
FASTGEN_INLINE VectorOf<T> load_row(const S* p, int n) {
  if constexpr (sizeof(S) == 1) {
    typename ByteVector<kLanesOf<T>>::Type bytes{};
    n == kLanesOf<T> ? memcpy(&bytes, p, sizeof bytes) : memcpy(&bytes, p, n);
    const auto hidden = __builtin_convertvector(bytes, Int<VectorOf<T>>) == 0;
    return (VectorOf<T>)(hidden & (Int<VectorOf<T>>)all<VectorOf<T>>(kHidden));
  } else {
    return Stored<S>::load(p, n);
  }
}

// Number t of rows, one a lane, goes to columns[t * kWidth + lane]; `vectors` of lanes.
template <class T, class S>
static void rows_to_lanes(const S* const* rows, int64_t step, int64_t count, int64_t vectors, T* columns) {
  using V = VectorOf<T>;
  constexpr int kCount = kLanesOf<T>;
  for (int64_t n = 0; n < vectors; ++n, rows += kCount, columns += kCount)
    for (int64_t t = 0; t < count; t += kCount) {
      const int left = static_cast<int>(std::min<int64_t>(kCount, count - t));
      V square[kCount];
      for (int i = 0; i < kCount; ++i) {
        if (step == 1 && left == kCount) {
          square[i] = load_row<T>(rows[i] + t, kCount);
        } else if (step == 1) {
          square[i] = load_row<T>(rows[i] + t, left);
        } else {
          S some[kCount] = {};
          for (int j = 0; j < left; ++j) some[j] = rows[i][(t + j) * step];
          square[i] = load_row<T>(some, left);
        }
      }
      transpose(square);
      for (int j = 0; j < left; ++j) store(columns + (t + j) * kWidth<T>, square[j]);
    }
}

// And back, to the first `lanes` of the rows.
template <class T, class S>
static void lanes_to_rows(const T* columns, int64_t count, int64_t lanes, S* const* rows, int64_t step) {
  using V = VectorOf<T>;
  constexpr int kCount = kLanesOf<T>;
  for (int64_t first = 0; first < lanes; first += kCount, rows += kCount, columns += kCount)
    for (int64_t t = 0; t < count; t += kCount) {
      const int left = static_cast<int>(std::min<int64_t>(kCount, count - t));
      V square[kCount];
      for (int j = 0; j < kCount; ++j) square[j] = j < left ? load<V>(columns + (t + j) * kWidth<T>) : V{};
      transpose(square);
      for (int i = 0; i < std::min<int64_t>(kCount, lanes - first); ++i) {
        if (step == 1) {
          Stored<S>::store(rows[i] + t, square[i], left);
        } else {
          S some[kCount];
          Stored<S>::store(some, square[i], left);
          for (int j = 0; j < left; ++j) rows[i][(t + j) * step] = some[j];
        }
      }
    }
}

// The queries of a block: row r of a group of heads is query r % queries of its head r / queries. Lanes past
// the last repeat it; what they give is not stored.
template <class T>
struct Queries {
  const Attention& task;
  Attention::Sequence sequence;
  int64_t group, count, vectors;                                // the head of keys; queries; and in vectors
  int64_t head[kWidth<T>], index[kWidth<T>], place[kWidth<T>];  // place among the keys
  int64_t first_key, last_key;                                  // what some query sees

  Queries(const Attention& task_, const Attention::Sequence& s, int64_t group_, int64_t first)
      : task(task_), sequence(s), group(group_) {
    const int64_t rows = task.group() * s.queries;
    count = std::min<int64_t>(kWidth<T>, rows - first), vectors = ceiling(count, kLanesOf<T>);
    const int64_t shift = task.causal == Attention::Causal::lower_right ? s.keys - s.queries : 0;
    int64_t lowest = INT64_MAX, highest = INT64_MIN;
    for (int64_t lane = 0; lane < kWidth<T>; ++lane) {
      const int64_t row = std::min(first + lane, first + count - 1);
      head[lane] = group * task.group() + row / s.queries, index[lane] = row % s.queries;
      place[lane] = index[lane] + shift;
      lowest = std::min(lowest, place[lane]), highest = std::max(highest, place[lane]);
    }
    const bool causal = task.causal != Attention::Causal::none;
    const int64_t reach = causal ? 1 : task.window ? task.window : s.keys;
    first_key = task.window ? std::max<int64_t>(0, lowest - task.window + 1) / kKeys * kKeys : 0;
    last_key = causal || task.window ? std::clamp<int64_t>(highest + reach, 0, s.keys) : s.keys;
  }

  template <class S>
  void rows(const Strided& x, S** rows, int64_t start) const {
    for (int64_t lane = 0; lane < kWidth<T>; ++lane)
      rows[lane] = static_cast<S*>(x.data) + sequence.batch * x.batch + head[lane] * x.head +
                   (start + index[lane]) * x.row;
  }

  // Of the rows of q and of what has its shape, `count` numbers, under each other.
  template <class S>
  void load(const Strided& x, int64_t numbers, T* columns) const {
    S* from[kWidth<T>];
    rows(x, from, sequence.query_start);
    rows_to_lanes<T, S>(from, x.column, numbers, vectors, columns);
  }
  template <class S>
  void store(const Strided& x, int64_t numbers, const T* columns) const {
    S* to[kWidth<T>];
    rows(x, to, sequence.query_start);
    lanes_to_rows<T, S>(columns, numbers, count, to, x.column);
  }

  // Whether there are keys of [first, first + n) that the place of some query hides.
  bool edge(int64_t first, int64_t n) const {
    if (task.causal == Attention::Causal::none && !task.window) return false;
    for (int64_t lane = 0; lane < count; ++lane) {
      const bool ahead = task.causal != Attention::Causal::none && first + n - 1 > place[lane];
      const bool far =
          task.window && (first <= place[lane] - task.window || first + n - 1 >= place[lane] + task.window);
      if (ahead || far) return true;
    }
    return false;
  }
};

// Hides, of n keys' scores from key `first` on, what the places of the queries hide.
template <class T>
static void hide_by_place(const Queries<T>& queries, int64_t first, int64_t n, T* scores) {
  using V = VectorOf<T>;
  using Scalar = decltype(Int<V>{}[0] + 0);
  constexpr int64_t kFar = 1 << 30;
  const bool causal = queries.task.causal != Attention::Causal::none;
  const int64_t window = queries.task.window;
  for (int64_t v = 0; v < queries.vectors; ++v) {
    Int<V> from, to;  // what is seen
    for (int i = 0; i < kLanesOf<T>; ++i) {
      const int64_t place = queries.place[v * kLanesOf<T> + i] - first;
      from[i] = static_cast<Scalar>(window ? std::clamp(place - window + 1, -kFar, kFar) : -kFar);
      to[i] = static_cast<Scalar>(std::clamp(causal   ? place
                                             : window ? place + window - 1
                                                      : kFar,
                                             -kFar, kFar));
    }
    T* column = scores + v * kLanesOf<T>;
    for (Scalar t = 0; t < n; ++t, column += kWidth<T>) {
      const Int<V> hidden = (from > t) | (to < t);
      store(column, hidden ? all<V>(kHidden) : load<V>(column));
    }
  }
}

// Bias and mask of n keys: what is added to their scores, kHidden where they are hidden. False if all are.
template <class T>
static bool addends(const Queries<T>& queries, int64_t first, int64_t n, T* sums, T* spare) {
  using V = VectorOf<T>;
  const Attention& task = queries.task;
  const auto read = [&](const Strided& x, auto number, T* columns) {
    using S = decltype(number);
    S* rows[kWidth<T>];
    queries.rows(x, rows, 0);
    for (auto& row : rows) row += first * x.column;
    if (std::all_of(rows, rows + queries.count, [&](S* row) { return row == rows[0]; })) {
      for (int64_t t = 0; t < n; ++t) {
        const V one = repeat(load_row<T>(rows[0] + t * x.column, 1)[0]);
        for (int64_t v = 0; v < queries.vectors; ++v) store(columns + t * kWidth<T> + v * kLanesOf<T>, one);
      }
    } else {
      rows_to_lanes<T, S>(rows, x.column, n, queries.vectors, columns);
      for (int64_t lane = 0; lane < queries.count; ++lane)  // rows lie too far apart to be foreseen
        for (int64_t t = n; t < 2 * n; t += 64 / sizeof(S)) __builtin_prefetch(rows[lane] + t * x.column);
    }
  };
  if (task.bias.data) read(task.bias, T{}, sums);
  if (task.mask.data) read(task.mask, uint8_t{}, task.bias.data ? spare : sums);
  Int<V> seen{};
  for (int64_t t = 0; t < n; ++t)
    for (int64_t v = 0; v < queries.vectors; ++v) {
      const int64_t at = t * kWidth<T> + v * kLanesOf<T>;
      if (task.bias.data && task.mask.data) {
        const V hidden = load<V>(spare + at);
        store(sums + at, hidden < V{} ? hidden : load<V>(sums + at));
      }
      seen |= load<V>(sums + at) != all<V>(kHidden);
    }
  return any_bit((U32)seen);
}

// 1 for the weights of n keys that dropout leaves, and 0.
template <class T>
static void draw_kept(const Queries<T>& queries, int64_t first, int64_t n, T* kept, T* rows) {
  constexpr int kSteps = kKeys / 4 / kLanes64;
  const Attention& task = queries.task;
  const uint64_t threshold = bernoulli_threshold(task.dropout);
  const RoundKeys keys(task.seed);
  const T* row[kWidth<T>];
  for (int64_t lane = 0; lane < kWidth<T>; ++lane) {
    row[lane] = rows + std::min(lane, queries.count - 1) * kKeys;
    if (lane >= queries.count) continue;
    const Stream stream(task.seed, task.sample_ids[queries.sequence.batch],
                        static_cast<uint32_t>(queries.index[lane]), kDropoutStream);
    const StreamVectors vectors(keys, stream);
    U64 block[kSteps];
    BlockVector words[kSteps];
    const uint64_t start = (static_cast<uint64_t>(queries.head[lane]) << 22) + first / 4;
    for (int s = 0; s < kSteps; ++s) block[s] = iota64() + (start + s * kLanes64);
    philox_blocks(vectors, block, words);
    for (int s = 0; s < kSteps; ++s)
      for (int w = 0; w < 4; ++w)
        for (int i = 0; i < kLanes64; ++i)
          rows[lane * kKeys + 4 * (s * kLanes64 + i) + w] = (words[s].word[w][i] & 0xFFFFFFFFu) >= threshold;
  }
  rows_to_lanes<T, T>(row, 1, n, queries.vectors, kept);
}

}  // namespace fastgen::FASTGEN_ISA
