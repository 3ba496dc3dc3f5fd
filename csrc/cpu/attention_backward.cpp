// Gradients of attention: weights are found again from the log-sum-exp. With P the weights, G the gradient of
// the result and delta = sum over a row of G times the result, less the gradient of the log-sum-exp:
//
//     dV = P^T G      dS = P (G V^T - delta)      dQ = scale dS K      dK = scale dS^T Q      dbias = dS
#include "attention.h"
#include "attention_sweep.h"

namespace fastgen::FASTGEN_ISA {
namespace {

template <class T>
struct Memory {
  SweepMemory<T> sweep;
  Buffer<T> grads, out, query_rows, grad_rows, grad_scores, tanh, clean_keys, grad_q, grad_k, grad_v;
};

// What a block of queries brings along.
template <class T>
struct Prepared {
  using V = VectorOf<T>;
  const T *queries, *grads;         // scaled q, and G, under each other
  const T *query_rows, *grad_rows;  // beside each other, in whole vectors; q with 0 for what is not finite
  V offset[kVectors], log_sum[kVectors], delta[kVectors];
};

template <class T, class S>
const T* rows_of(const Queries<T>& queries, const Strided& x, int64_t numbers, double scale, bool clean,
                 Buffer<T>& buffer) {
  const int64_t width = whole_vectors<T>(numbers);
  T* copy = buffer.of(queries.count * width);
  S* rows[kWidth<T>];
  queries.rows(x, rows, queries.sequence.query_start);
  for (int64_t lane = 0; lane < queries.count; ++lane)
    for (int64_t d = 0; d < width; d += kLanesOf<T>) {
      S some[kLanesOf<T>] = {};
      for (int64_t i = 0; i < std::min<int64_t>(kLanesOf<T>, numbers - d); ++i)
        some[i] = rows[lane][(d + i) * x.column];
      const VectorOf<T> v = load_row<T>(some, kLanesOf<T>) * all<VectorOf<T>>(scale);
      store(copy + lane * width + d, clean ? (v - v == VectorOf<T>{} ? v : VectorOf<T>{}) : v);
    }
  return copy;
}

template <class T, class S>
Prepared<T> prepare(const Queries<T>& queries, Memory<T>& m) {
  using V = VectorOf<T>;
  const Attention& task = queries.task;
  const int64_t start = queries.sequence.query_start, numbers = task.value_size;
  Prepared<T> p;
  p.queries = scaled_queries<T, S>(queries, m.sweep.queries);
  T *grads = m.grads.of(numbers * kWidth<T>), *out = m.out.of(numbers * kWidth<T>);
  queries.template load<S>(task.grad_out, numbers, grads);
  queries.template load<S>(task.out, numbers, out);
  p.grads = grads;
  p.query_rows = rows_of<T, S>(queries, task.q, task.size, task.scale, true, m.query_rows);
  p.grad_rows = rows_of<T, S>(queries, task.grad_out, numbers, 1, false, m.grad_rows);
  T *lse[kWidth<T>], *grad_lse[kWidth<T>];
  queries.rows(task.lse, lse, start), queries.rows(task.grad_lse, grad_lse, start);
  Int<V> large{};
  for (int64_t v = 0; v < queries.vectors; ++v) {
    V sum{};
    for (int64_t d = 0; d < numbers; ++d) {
      const int64_t at = d * kWidth<T> + v * kLanesOf<T>;
      sum = multiply_add(load<V>(grads + at), load<V>(out + at), sum);
    }
    V log_sum, of_lse;
    for (int i = 0; i < kLanesOf<T>; ++i)
      log_sum[i] = *lse[v * kLanesOf<T> + i], of_lse[i] = *grad_lse[v * kLanesOf<T> + i];
    const auto nothing = log_sum == all<V>(kHidden);
    large |= ~nothing & (magnitude(log_sum) >= all<V>(Softmax<T>::kLarge));
    p.delta[v] = sum - of_lse, p.offset[v] = V{};
    p.log_sum[v] = nothing ? all<V>(-kHidden) : log_sum;
  }
  if (any<V>(large)) {  // a log-sum-exp so large has lost the sum
    const Softmax<T> softmax = sweep<T, S>(queries, m.sweep, p.queries, nullptr, false);
    for (int64_t v = 0; v < queries.vectors; ++v) {
      const auto moved = softmax.offset[v] != V{};
      p.log_sum[v] = moved ? softmax.log_total(v) : p.log_sum[v];
      p.offset[v] = softmax.offset[v];
    }
  }
  return p;
}

// Scores become the weights by which values were added, and what came back along them their gradients.
template <class T>
void differentiate(const Queries<T>& queries, const Prepared<T>& p, int64_t n, const T* kept, T* scores,
                   T* grads) {
  using V = VectorOf<T>;
  const V whole = all<V>(1 / (1 - queries.task.dropout)), lowest = lowest_exponent(V{});
  for (int64_t v = 0; v < queries.vectors; ++v)
    for (int64_t t = 0; t < n; ++t) {
      const int64_t at = t * kWidth<T> + v * kLanesOf<T>;
      const V weight = scaled_exp((load<V>(scores + at) - p.offset[v]) - p.log_sum[v], V{}, lowest);
      const V left = kept ? load<V>(kept + at) * whole : all<V>(1);
      const V grad = weight * (load<V>(grads + at) * left - p.delta[v]);
      store(scores + at, weight * left);
      store(grads + at, weight == V{} ? V{} : grad);
    }
}

template <class T>
void store_bias(const Queries<T>& queries, int64_t first, int64_t n, const T* grads) {
  T* rows[kWidth<T>];
  queries.rows(queries.task.grad_bias, rows, 0);
  for (T*& row : rows) row += first * queries.task.grad_bias.column;
  lanes_to_rows<T, T>(grads, n, queries.count, rows, queries.task.grad_bias.column);
}

template <class T>
void through_softcap(const Queries<T>& queries, int64_t n, const T* curved, T* grads) {
  using V = VectorOf<T>;
  for (int64_t t = 0; t < n; ++t)
    for (int64_t v = 0; v < queries.vectors; ++v) {
      const int64_t at = t * kWidth<T> + v * kLanesOf<T>;
      const V tanh = load<V>(curved + at), grad = load<V>(grads + at);
      store(grads + at, grad == V{} ? V{} : grad * (all<V>(1) - tanh * tanh));
    }
}

// Where sums of gradients stand: of the queries under each other, of the keys from `first_key` on beside each
// other; null where they are not wanted.
template <class T>
struct Sums {
  T *grad_q, *grad_k, *grad_v;
  int64_t first_key;
  bool clean;  // whether there are keys that are not finite
};

template <class T, class S>
void add_gradients(const Queries<T>& queries, const Prepared<T>& p, int64_t first, int64_t n,
                   const Sums<T>& sums, Memory<T>& m) {
  const Attention& task = queries.task;
  SweepMemory<T>& memory = m.sweep;
  T* const scores = memory.scores.of(kKeys * kWidth<T>);
  T* const grads = m.grad_scores.of(kKeys * kWidth<T>);
  T* const added = task.bias.data || task.mask.data ? memory.added.of(kKeys * kWidth<T>) : nullptr;
  T* const spare = added || task.dropout > 0 ? memory.spare.of(kKeys * kWidth<T>) : nullptr;
  T* const kept = task.dropout > 0 ? memory.kept.of(kKeys * kWidth<T>) : nullptr;
  T* const curved = task.softcap != 0 ? m.tanh.of(kKeys * kWidth<T>) : nullptr;
  if (added && !addends(queries, first, n, added, spare)) return;
  const auto& s = queries.sequence;
  const auto keys = keys_of<T, S>(task.k, s, queries.group, first, n, task.size, false, memory.keys);
  find_scores<T>(queries, p.queries, keys, first, n, added, curved, scores);
  const auto values =
      keys_of<T, S>(task.v, s, queries.group, first, n, task.value_size, false, memory.values);
  multiply(Product<T>{values.data, values.row, values.column, p.grads, kWidth<T>, task.value_size, grads,
                      kWidth<T>, true},
           n, queries.vectors);
  if (kept) draw_kept(queries, first, n, kept, spare);
  differentiate<T>(queries, p, n, kept, scores, grads);
  if (sums.grad_q && task.grad_bias.data) store_bias<T>(queries, first, n, grads);
  if (curved) through_softcap<T>(queries, n, curved, grads);
  if (sums.grad_q) {
    const auto finite =
        sums.clean ? keys_of<T, S>(task.k, s, queries.group, first, n, task.size, true, m.clean_keys) : keys;
    multiply(Product<T>{finite.data, finite.column, finite.row, grads, kWidth<T>, n, sums.grad_q, kWidth<T>,
                        false},
             task.size, queries.vectors);
  }
  if (!sums.grad_k) return;
  const auto add = [&](const T* left, const T* rows, int64_t numbers, T* to) {
    const int64_t width = whole_vectors<T>(numbers);
    multiply(Product<T>{left, kWidth<T>, 1, rows, width, queries.count, to + (first - sums.first_key) * width,
                        width, false},
             n, width / kLanesOf<T>);
  };
  add(scores, p.grad_rows, task.value_size, sums.grad_v);
  add(grads, p.query_rows, task.size, sums.grad_k);
}

template <class T>
void store_keys(const Strided& x, const Attention::Sequence& s, int64_t head, int64_t first, int64_t n,
                int64_t numbers, const T* sums) {
  for (int64_t t = 0; t < n; ++t) {
    T* row = static_cast<T*>(x.data) + s.batch * x.batch + head * x.head + (s.key_start + first + t) * x.row;
    for (int64_t d = 0; d < numbers; ++d) row[d * x.column] = sums[t * whole_vectors<T>(numbers) + d];
  }
}

template <class T, class S>
bool all_finite(const Attention& task, const Attention::Sequence& s, int64_t head, Buffer<T>& buffer) {
  bool strange = false;
  for (int64_t first = 0; first < s.keys; first += kKeys) {
    const int64_t n = std::min<int64_t>(kKeys, s.keys - first);
    const auto keys = keys_of<T, S>(task.k, s, head, first, n, task.size, false, buffer);
    for (int64_t t = 0; t < n; ++t)
      for (int64_t d = 0; d < task.size; ++d) {
        const T x = keys.data[t * keys.row + d * keys.column];
        strange |= !(x - x == 0);
      }
  }
  return !strange;
}

// Queries [first_row, last_row) of a group of heads and its keys [first_key, last_key).
template <class T, class S>
void go_back(const Attention& task, const Attention::Sequence& s, int64_t head, AttentionUnit unit,
             int64_t first_row, int64_t last_row, int64_t first_key, int64_t last_key, Memory<T>& m) {
  const int64_t n = last_key - first_key;
  const int64_t widths[2] = {whole_vectors<T>(task.size), whole_vectors<T>(task.value_size)};
  Sums<T> sums{nullptr, nullptr, nullptr, first_key, !all_finite<T, S>(task, s, head, m.sweep.keys)};
  if (unit != AttentionUnit::keys) sums.grad_q = m.grad_q.of(task.size * kWidth<T>);
  if (unit != AttentionUnit::queries) {
    sums.grad_k = m.grad_k.of(n * widths[0]), sums.grad_v = m.grad_v.of(n * widths[1]);
    std::fill(sums.grad_k, sums.grad_k + n * widths[0], T{0});
    std::fill(sums.grad_v, sums.grad_v + n * widths[1], T{0});
  }
  for (int64_t row = first_row; row < last_row; row += kWidth<T>) {
    const Queries<T> queries(task, s, head, row);
    const Prepared<T> prepared = prepare<T, S>(queries, m);
    if (sums.grad_q) std::fill(sums.grad_q, sums.grad_q + task.size * kWidth<T>, T{0});
    const int64_t end = std::min(last_key, queries.last_key);
    for (int64_t key = std::max(first_key, queries.first_key); key < end; key += kKeys)
      add_gradients<T, S>(queries, prepared, key, std::min<int64_t>(kKeys, end - key), sums, m);
    if (!sums.grad_q) continue;
    for (int64_t i = 0; i < task.size * kWidth<T>; ++i) sums.grad_q[i] *= static_cast<T>(task.scale);
    queries.template store<T>(task.grad_q, task.size, sums.grad_q);
  }
  if (!sums.grad_k) return;
  store_keys(task.grad_k, s, head, first_key, n, task.size, sums.grad_k);
  store_keys(task.grad_v, s, head, first_key, n, task.value_size, sums.grad_v);
}

template <class T, class S>
void run(const Attention& task, AttentionUnit unit, std::atomic<int64_t>& left) {
  Memory<T> memory;
  for (int64_t i; (i = left.fetch_sub(1) - 1) >= 0;) {
    const int64_t b = std::upper_bound(task.units, task.units + task.batch, i) - task.units - 1;
    const Attention::Sequence s = task.sequence(b);
    const int64_t rows = task.group() * s.queries, place = i - task.units[b];
    const int64_t pieces = (task.units[b + 1] - task.units[b]) / task.key_heads;
    const int64_t head = place / pieces, piece = place % pieces;
    if (unit == AttentionUnit::head) go_back<T, S>(task, s, head, unit, 0, rows, 0, s.keys, memory);
    if (unit == AttentionUnit::queries)
      go_back<T, S>(task, s, head, unit, piece * kWidth<T>, std::min(rows, (piece + 1) * kWidth<T>), 0,
                    s.keys, memory);
    if (unit == AttentionUnit::keys)
      go_back<T, S>(task, s, head, unit, 0, rows, piece * kAttentionKeys,
                    std::min(s.keys, (piece + 1) * kAttentionKeys), memory);
  }
}

}  // namespace

void attention_backward(const Attention& task, AttentionUnit unit, std::atomic<int64_t>& left) {
  switch (task.numbers) {
    case Attention::Numbers::float32:
      return run<float, float>(task, unit, left);
    case Attention::Numbers::float64:
      return run<double, double>(task, unit, left);
    case Attention::Numbers::bfloat16:
      return run<float, Bfloat16>(task, unit, left);
  }
}

}  // namespace fastgen::FASTGEN_ISA
