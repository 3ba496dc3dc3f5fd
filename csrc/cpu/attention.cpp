#include "attention.h"

#include "attention_sweep.h"

namespace fastgen::FASTGEN_ISA {
namespace {

// Sums become averages, and the log-sum-exp is stored. False if something is NaN.
template <class T>
bool finish(const Queries<T>& queries, const Softmax<T>& softmax, T* sums) {
  using V = VectorOf<T>;
  const Attention& task = queries.task;
  const V whole = all<V>(1 / (1 - task.dropout));
  Int<V> strange{};
  T* lse[kWidth<T>];
  queries.rows(task.lse, lse, queries.sequence.query_start);
  for (int64_t v = 0; v < queries.vectors; ++v) {
    const V total = softmax.total[v], inverse = total == V{} ? V{} : whole / total;
    for (int64_t d = 0; d < task.value_size; ++d) {
      T* at = sums + d * kWidth<T> + v * kLanesOf<T>;
      const V mean = load<V>(at) * inverse;
      strange |= mean != mean;
      store(at, mean);
    }
    const V log_sum = softmax.offset[v] + softmax.log_total(v);
    for (int64_t i = 0; i < std::min<int64_t>(kLanesOf<T>, queries.count - v * kLanesOf<T>); ++i)
      *lse[v * kLanesOf<T> + i] = log_sum[i];
  }
  return !any<V>(strange);
}

template <class T, class S>
void attend(const Attention& task, std::atomic<int64_t>& left) {
  SweepMemory<T> memory;
  for (int64_t unit; (unit = left.fetch_sub(1) - 1) >= 0;) {
    const int64_t b = std::upper_bound(task.units, task.units + task.batch, unit) - task.units - 1;
    const Attention::Sequence s = task.sequence(b);
    const int64_t blocks = ceiling(task.group() * s.queries, kWidth<T>), place = unit - task.units[b];
    const Queries<T> queries(task, s, place / blocks, place % blocks * kWidth<T>);
    const T* columns = scaled_queries<T, S>(queries, memory.queries);
    T* sums = memory.sums.of(task.value_size * kWidth<T>);
    if (!finish(queries, sweep<T, S>(queries, memory, columns, sums, false), sums))
      finish(queries, sweep<T, S>(queries, memory, columns, sums, true), sums);
    queries.template store<S>(task.out, task.value_size, sums);
  }
}

}  // namespace

int64_t attention_rows(const Attention& task) {
  return task.numbers == Attention::Numbers::float64 ? kWidth<double> : kWidth<float>;
}

void attention(const Attention& task, std::atomic<int64_t>& left) {
  switch (task.numbers) {
    case Attention::Numbers::float32:
      return attend<float, float>(task, left);
    case Attention::Numbers::float64:
      return attend<double, double>(task, left);
    case Attention::Numbers::bfloat16:
      return attend<float, Bfloat16>(task, left);
  }
}

}  // namespace fastgen::FASTGEN_ISA
