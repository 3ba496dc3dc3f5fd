// A block of queries over the keys that some of them see.
#pragma once
#include "attention_softmax.h"

namespace fastgen::FASTGEN_ISA {

template <class T>
struct SweepMemory {
  Buffer<T> queries, scores, sums, keys, values, added, spare, kept;
};

// n values that are not finite, each added where its key has a weight.
template <class T, class S>
static void add_strange(const Queries<T>& queries, int64_t first, int64_t n, const T* weights, T* sums) {
  using V = VectorOf<T>;
  const Attention& task = queries.task;
  Buffer<T> row;
  for (int64_t t = 0; t < n; ++t) {
    const Matrix<T> value =
        keys_of<T, S>(task.v, queries.sequence, queries.group, first + t, 1, task.value_size, false, row);
    for (int64_t d = 0; d < task.value_size; ++d) {
      const T x = value.data[d * value.column];
      if (x - x == 0) continue;
      for (int64_t v = 0; v < queries.vectors; ++v) {
        const int64_t lane = v * kLanesOf<T>;
        const V weight = load<V>(weights + t * kWidth<T> + lane);
        store(sums + d * kWidth<T> + lane,
              load<V>(sums + d * kWidth<T> + lane) + (weight != V{} ? repeat(x) : V{}));
      }
    }
  }
}

// The softmax of the queries over all keys, and if `sums` is given the sums of values by their weights.
// `clean`: values that are not finite are taken out of the products and added where they are seen.
template <class T, class S>
static Softmax<T> sweep(const Queries<T>& queries, SweepMemory<T>& memory, const T* columns, T* sums,
                        bool clean) {
  const Attention& task = queries.task;
  Softmax<T> softmax;
  T* const scores = memory.scores.of(kKeys * kWidth<T>);
  T* const added = task.bias.data || task.mask.data ? memory.added.of(kKeys * kWidth<T>) : nullptr;
  T* const spare = added || task.dropout > 0 ? memory.spare.of(kKeys * kWidth<T>) : nullptr;
  T* const kept = task.dropout > 0 ? memory.kept.of(kKeys * kWidth<T>) : nullptr;
  const int64_t numbers = sums ? task.value_size : 0;
  std::fill(sums, sums + numbers * kWidth<T>, T{0});
  for (int64_t first = queries.first_key; first < queries.last_key; first += kKeys) {
    const int64_t n = std::min<int64_t>(kKeys, queries.last_key - first);
    if (added && !addends(queries, first, n, added, spare)) continue;
    const Matrix<T> keys =
        keys_of<T, S>(task.k, queries.sequence, queries.group, first, n, task.size, false, memory.keys);
    find_scores<T>(queries, columns, keys, first, n, added, nullptr, scores);
    softmax.weigh(scores, n, queries.vectors, sums, numbers);
    if (!sums) continue;
    if (kept) {
      draw_kept(queries, first, n, kept, spare);
      for (int64_t i = 0; i < n * kWidth<T>; ++i) scores[i] *= kept[i];
    }
    const Matrix<T> values =
        keys_of<T, S>(task.v, queries.sequence, queries.group, first, n, numbers, clean, memory.values);
    multiply(Product<T>{values.data, values.column, values.row, scores, kWidth<T>, n, sums, kWidth<T>, false},
             numbers, queries.vectors);
    if (clean) add_strange<T, S>(queries, first, n, scores, sums);
  }
  return softmax;
}

// q, scaled, under each other.
template <class T, class S>
static T* scaled_queries(const Queries<T>& queries, Buffer<T>& buffer) {
  const Attention& task = queries.task;
  T* columns = buffer.of(task.size * kWidth<T>);
  queries.template load<S>(task.q, task.size, columns);
  const T scale = static_cast<T>(task.scale);
  for (int64_t i = 0; i < task.size * kWidth<T>; ++i) columns[i] *= scale;
  return columns;
}

}  // namespace fastgen::FASTGEN_ISA
