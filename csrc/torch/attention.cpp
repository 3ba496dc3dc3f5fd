#include "../cpu/attention.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "native.h"

namespace fastgen {
namespace {

using Optional = std::optional<Tensor>;

// Where numbers lie: (B, heads, positions, numbers), or packed (positions, heads, numbers); without columns
// (B, heads, positions) or (positions, heads).
Strided strided(const Tensor& x, ScalarType type, const std::vector<int64_t>& sizes, bool columns,
                const char* what) {
  require(x.scalar_type() == type && x.dim() == static_cast<int64_t>(sizes.size()), what);
  for (size_t i = 0; i < sizes.size(); ++i) require(x.size(i) == sizes[i], what);
  const bool packed = x.dim() == (columns ? 3 : 2);
  return {x.data_ptr(), packed ? 0 : x.stride(0), x.stride(1), x.stride(packed ? 0 : 2),
          columns ? x.stride(packed ? 2 : 3) : 0};
}

const int64_t* starts(const Optional& x, int64_t end, const char* what) {
  if (!x) return nullptr;
  require(x->scalar_type() == ScalarType::Long && x->dim() == 1 && x->is_contiguous() && x->numel() > 0,
          what);
  const int64_t *ends = data<int64_t>(*x), count = x->numel();
  require(ends[0] == 0 && ends[count - 1] == end && std::is_sorted(ends, ends + count), what);
  return ends;
}

struct Shapes {
  std::vector<int64_t> q, k, v, out, lse, scores;
};

Shapes shapes_of(const Attention& task, const Tensor& q, const Tensor& k) {
  if (task.query_starts) {
    const int64_t rows = q.size(0), keys = k.size(0);
    return {{rows, task.query_heads, task.size},
            {keys, task.key_heads, task.size},
            {keys, task.key_heads, task.value_size},
            {rows, task.query_heads, task.value_size},
            {rows, task.query_heads},
            {}};
  }
  const int64_t b = task.batch;
  return {{b, task.query_heads, task.queries, task.size},
          {b, task.key_heads, task.keys, task.size},
          {b, task.key_heads, task.keys, task.value_size},
          {b, task.query_heads, task.queries, task.value_size},
          {b, task.query_heads, task.queries},
          {b, task.query_heads, task.queries, task.keys}};
}

struct Options {
  int64_t causal, window;
  double softcap, scale, dropout;
  int64_t seed;
};

struct Given {
  Tensor q, k, v;
  Optional bias, mask, query_starts, key_starts, sample_ids;
  Options options;
};

ScalarType wide(const Tensor& q) {
  return q.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Attention task_of(const Given& given, Shapes& shapes) {
  const Tensor &q = given.q, &k = given.k, &v = given.v;
  const bool packed = given.query_starts.has_value();
  const ScalarType type = q.scalar_type();
  require(q.dim() == (packed ? 3 : 4) && k.dim() == q.dim() && v.dim() == q.dim(), "bad q, k or v");
  Attention task{};
  require(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16, "bad q");
  task.numbers = type == ScalarType::Double     ? Attention::Numbers::float64
                 : type == ScalarType::BFloat16 ? Attention::Numbers::bfloat16
                                                : Attention::Numbers::float32;
  task.query_heads = q.size(1), task.key_heads = k.size(1);
  task.size = q.size(q.dim() - 1), task.value_size = v.size(v.dim() - 1);
  require(task.key_heads > 0 && task.query_heads % task.key_heads == 0, "bad k");
  require(packed == given.key_starts.has_value(), "bad key_starts");
  task.query_starts = starts(given.query_starts, q.size(0), "bad query_starts");
  task.key_starts = starts(given.key_starts, k.size(0), "bad key_starts");
  task.batch = packed ? given.query_starts->numel() - 1 : q.size(0);
  if (packed) require(given.key_starts->numel() == task.batch + 1, "bad key_starts");
  if (!packed) task.queries = q.size(2), task.keys = k.size(2);
  shapes = shapes_of(task, q, k);
  task.q = strided(q, type, shapes.q, true, "bad q");
  task.k = strided(k, type, shapes.k, true, "bad k");
  task.v = strided(v, type, shapes.v, true, "bad v");
  if (given.bias) task.bias = strided(*given.bias, wide(q), shapes.scores, true, "bad bias");
  if (given.mask) task.mask = strided(*given.mask, ScalarType::Bool, shapes.scores, true, "bad mask");
  const Options& o = given.options;
  require(o.causal >= 0 && o.causal < 3 && o.window >= 0, "bad options");
  task.causal = static_cast<Attention::Causal>(o.causal), task.window = o.window;
  task.softcap = o.softcap, task.scale = o.scale, task.dropout = o.dropout;
  task.seed = static_cast<uint64_t>(o.seed);
  if (o.dropout > 0) {
    const Optional& ids = given.sample_ids;
    require(ids && ids->scalar_type() == ScalarType::Long && ids->is_contiguous() && ids->dim() == 1 &&
                ids->numel() == task.batch,
            "bad sample_ids");
    task.sample_ids = data<int64_t>(*ids);
  }
  return task;
}

// The first unit of work of each sequence, and their number: blocks of `rows` of the queries or keys of each
// group of heads; 0 stands for all.
std::vector<int64_t> units_of(const Attention& task, AttentionUnit unit, int64_t rows) {
  std::vector<int64_t> units(task.batch + 1);
  for (int64_t b = 0; b < task.batch; ++b) {
    const Attention::Sequence s = task.sequence(b);
    const int64_t whole = unit == AttentionUnit::keys ? s.keys : task.group() * s.queries;
    const int64_t blocks =
        unit == AttentionUnit::head ? (whole > 0 || s.keys > 0) : (whole + rows - 1) / rows;
    units[b + 1] = units[b] + task.key_heads * blocks;
  }
  return units;
}

// Threads take the units from the last to the first, one after the other: with a causal mask the last ones
// are the longest.
template <class Kernel>
void share(int64_t units, Kernel kernel) {
  std::atomic<int64_t> left{units};
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), units);
  parallel_for(0, threads, 1, [&](int64_t, int64_t) { kernel(left); });
}

void attention_out(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Optional bias, Optional mask,
                   Optional query_starts, Optional key_starts, int64_t causal, int64_t window, double softcap,
                   double scale, double dropout, int64_t seed, Optional sample_ids) {
  Shapes shapes;
  Attention task = task_of({q,
                            k,
                            v,
                            bias,
                            mask,
                            query_starts,
                            key_starts,
                            sample_ids,
                            {causal, window, softcap, scale, dropout, seed}},
                           shapes);
  task.out = strided(out, q.scalar_type(), shapes.out, true, "bad out");
  task.lse = strided(lse, wide(q), shapes.lse, false, "bad lse");
  const auto units = units_of(task, AttentionUnit::queries, FASTGEN_KERNEL(attention_rows)(task));
  task.units = units.data();
  const auto kernel = FASTGEN_KERNEL(attention);
  share(units.back(), [&](std::atomic<int64_t>& left) { kernel(task, left); });
}

// Groups of heads by themselves take five products for each block of scores, blocks of queries and ranges of
// keys seven, which pays where groups are too few for the threads.
bool by_heads(int64_t groups) {
  const int64_t threads = torch::stable::get_num_threads();
  return 5 * ((groups + threads - 1) / threads) * threads <= 7 * groups;
}

void attention_backward_out(Tensor grad_q, Tensor grad_k, Tensor grad_v, Optional grad_bias, Tensor grad_out,
                            Tensor grad_lse, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v,
                            Optional bias, Optional mask, Optional query_starts, Optional key_starts,
                            int64_t causal, int64_t window, double softcap, double scale, double dropout,
                            int64_t seed, Optional sample_ids) {
  Shapes shapes;
  Attention task = task_of({q,
                            k,
                            v,
                            bias,
                            mask,
                            query_starts,
                            key_starts,
                            sample_ids,
                            {causal, window, softcap, scale, dropout, seed}},
                           shapes);
  const ScalarType type = q.scalar_type(), real = wide(q);
  task.out = strided(out, type, shapes.out, true, "bad out");
  task.lse = strided(lse, real, shapes.lse, false, "bad lse");
  task.grad_out = strided(grad_out, type, shapes.out, true, "bad grad_out");
  task.grad_lse = strided(grad_lse, real, shapes.lse, false, "bad grad_lse");
  task.grad_q = strided(grad_q, real, shapes.q, true, "bad grad_q");
  task.grad_k = strided(grad_k, real, shapes.k, true, "bad grad_k");
  task.grad_v = strided(grad_v, real, shapes.v, true, "bad grad_v");
  if (grad_bias) task.grad_bias = strided(*grad_bias, real, shapes.scores, true, "bad grad_bias");
  const auto kernel = FASTGEN_KERNEL(attention_backward);
  const auto go = [&](AttentionUnit unit, int64_t rows) {
    const auto units = units_of(task, unit, rows);
    task.units = units.data();
    share(units.back(), [&](std::atomic<int64_t>& left) { kernel(task, unit, left); });
  };
  if (by_heads(task.batch * task.key_heads)) return go(AttentionUnit::head, 0);
  go(AttentionUnit::queries, FASTGEN_KERNEL(attention_rows)(task));
  go(AttentionUnit::keys, kAttentionKeys);
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen_native, m) {
  const std::string given =
      "Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? mask, Tensor? query_starts, Tensor? key_starts, "
      "int causal, int window, float softcap, float scale, float dropout_p, int seed, Tensor? sample_ids) -> "
      "()";
  m.def(("attention(Tensor(a!) out, Tensor(b!) lse, " + given).c_str());
  m.def(("attention_backward(Tensor(a!) grad_q, Tensor(b!) grad_k, Tensor(c!) grad_v, Tensor(d!)? grad_bias, "
         "Tensor grad_out, Tensor grad_lse, Tensor out, Tensor lse, " +
         given)
            .c_str());
}

STABLE_TORCH_LIBRARY_IMPL(fastgen_native, CPU, m) {
  m.impl("attention", TORCH_BOX(&fastgen::attention_out));
  m.impl("attention_backward", TORCH_BOX(&fastgen::attention_backward_out));
}
