#include "../cpu/decode_attention.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <optional>
#include <vector>

#include "../cpu/decode_plan.h"
#include "../cpu/team.h"
#include "direct.h"

namespace fastgen {
namespace {

constexpr int64_t kNearBytes = 16 << 20;  // what is left in the last cache from one call to the next

struct Free {
  void operator()(float* memory) const { operator delete(memory, std::align_val_t{64}); }
};

using Optional = std::optional<View>;

KeyCache cache_of(const View& t, const View& keys, const char* what) {
  require(t.dims == 4 && t.type == keys.type && t.is_like(keys, keys.last()), what);
  require(t.last() == 1 || t.strides[3] == 1, what);
  return {t.memory, t.strides[0], t.strides[1], t.strides[2]};
}

const int64_t* numbers(const View& t, int64_t count, const char* what) {
  require(t.is(ScalarType::Long) && t.dims == 1 && t.size(0) == count, what);
  return data<int64_t>(t);
}

void run(const DecodeAttention& task) {
  const DecodeWork work(task);
  const DecodePlan& plan = work.plan();
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), plan.units);
  const auto bytes = static_cast<size_t>(plan.scratch + threads * plan.workspace) * sizeof(float);
  const std::unique_ptr<float, Free> memory(static_cast<float*>(operator new(bytes, std::align_val_t{64})));
  float* const scratch = memory.get();
  const auto kernel = FASTGEN_KERNEL(decode_attention);
  const auto merge = FASTGEN_KERNEL(decode_attention_merge);
  Team team(threads);
  parallel_for(0, threads, 1, [&](int64_t number, int64_t) {
    Member me(team, number);
    float* const workspace = scratch + plan.scratch + number * plan.workspace;
    me.run(plan.units, 1,
           [&](int64_t first, int64_t last) { kernel(task, plan, scratch, workspace, first, last); });
    me.run(plan.merges, 1,
           [&](int64_t first, int64_t last) { merge(task, plan, scratch, workspace, first, last); });
  });
}

struct Given {
  View q, keys, values, lengths;  // q: rows of heads, with maybe a dimension of 1 between heads and numbers
  Optional query_starts, block_table;
  double scale, softcap;
  int64_t window;
};

void give_cache(const Given& given, DecodeAttention& task) {
  const View& keys = given.keys;
  require(keys.dims == 4 && keys.size(1) > 0 && task.query_heads % keys.size(1) == 0, "bad keys");
  task.bfloat16 = keys.type == ScalarType::BFloat16;
  require(task.bfloat16 || keys.type == ScalarType::Float, "bad keys");
  task.keys = cache_of(keys, keys, "bad keys"), task.values = cache_of(given.values, keys, "bad values");
  task.key_heads = keys.size(1), task.page = keys.size(2);
  if (const Optional& table = given.block_table) {
    require(table->is(ScalarType::Int) && table->dims == 2 && table->size(0) == task.sequences &&
                task.page % kKeyBlock == 0 && task.page > 0,
            "bad block_table");
    task.block_table = data<int32_t>(*table), task.table_stride = table->size(1);
  } else {
    require(keys.size(0) == task.sequences, "bad keys");
  }
}

void check_values(const DecodeAttention& task, int64_t rows, int64_t pages) {
  require(task.query_starts[0] == 0 && task.query_starts[task.sequences] == rows, "bad query_starts");
  const int64_t most = task.page * (task.block_table ? task.table_stride : 1);
  for (int64_t s = 0; s < task.sequences; ++s) {
    require(task.query_starts[s] <= task.query_starts[s + 1], "bad query_starts");
    require(task.lengths[s] >= 0 && task.lengths[s] <= most, "bad lengths");
    if (!task.block_table) continue;
    for (int64_t i = 0; i * task.page < task.lengths[s]; ++i) {
      const int32_t page = task.block_table[s * task.table_stride + i];
      require(page >= 0 && page < pages, "bad block_table");
    }
  }
}

bool is_far(const DecodeAttention& task) {
  int64_t keys = 0;
  for (int64_t s = 0; s < task.sequences; ++s) keys += task.lengths[s];
  return 2 * keys * task.key_heads * task.size * (task.bfloat16 ? 2 : 4) > kNearBytes;
}

// All but out and lse. `even` holds the starts of the rows if they are not given.
DecodeAttention task_of(const Given& given, std::vector<int64_t>& even) {
  DecodeAttention task{};
  const View &q = given.q, &lengths = given.lengths;
  require(q.dims >= 3 && q.is(ScalarType::Float) && q.last() > 0, "bad q");
  const int64_t rows = q.size(0);
  task.query_heads = q.size(1), task.size = q.last();
  task.q_stride = task.out_stride = task.query_heads * task.size;
  task.q = data<float>(q);
  require(lengths.dims == 1, "bad lengths");
  task.sequences = lengths.size(0);
  task.lengths = numbers(lengths, task.sequences, "bad lengths");
  give_cache(given, task);
  require(given.keys.last() == task.size, "bad q");
  if (given.query_starts) {
    task.query_starts = numbers(*given.query_starts, task.sequences + 1, "bad query_starts");
  } else {
    even.resize(task.sequences + 1);
    for (size_t s = 1; s < even.size(); ++s) even[s] = even[s - 1] + rows / task.sequences;
    task.query_starts = even.data();
  }
  check_values(task, rows, given.keys.size(0));
  require(given.window >= 0 && given.softcap >= 0, "bad window or softcap");
  task.scale = static_cast<float>(given.scale), task.softcap = static_cast<float>(given.softcap);
  task.window = given.window, task.far = is_far(task);
  return task;
}

void decode_attention_out(Tensor out, Tensor lse, Tensor q, Tensor keys, Tensor values, Tensor lengths,
                          std::optional<Tensor> query_starts, std::optional<Tensor> block_table, double scale,
                          int64_t window, double softcap) {
  std::vector<int64_t> even;
  const Given given{q, keys, values, lengths, view(query_starts), view(block_table), scale, softcap, window};
  DecodeAttention task = task_of(given, even);
  const View result(out), sums(lse);
  require(given.q.dims == 3, "bad q");
  require(result.is(ScalarType::Float) && result.numel() == given.q.numel(), "bad out");
  require(sums.is(ScalarType::Float) && sums.numel() == q.size(0) * task.query_heads, "bad lse");
  task.out = data<float>(result), task.lse = data<float>(sums);
  if (result.numel() > 0) run(task);
}

// (out, lse).
PyObject* decode_attention_direct(Arguments& arguments) {
  Given given;
  given.q = arguments.tensor(), given.keys = arguments.tensor(), given.values = arguments.tensor();
  given.lengths = arguments.tensor();
  given.query_starts = arguments.maybe_tensor(), given.block_table = arguments.maybe_tensor();
  const std::optional<double> scale = arguments.maybe_number();
  const std::optional<int64_t> window = arguments.maybe_integer();
  const std::optional<double> softcap = arguments.maybe_number();
  if (!arguments.plain()) return nullptr;
  // Packed rows, or one new position of each sequence; more have to be put one after the other first.
  const View& q = given.q;
  require(given.query_starts ? q.dims == 3 : q.dims == 4 && q.size(2) == 1, "bad q");
  require(given.query_starts || q.size(0) == given.lengths.numel(), "bad lengths");
  given.scale = scale ? *scale : std::pow(static_cast<double>(q.last()), -0.5);
  given.window = window.value_or(0), given.softcap = softcap.value_or(0.0);
  require(std::isfinite(given.scale) && std::isfinite(given.softcap), "bad scale or softcap");
  require((!window || *window > 0) && (!softcap || *softcap > 0), "bad window or softcap");
  std::vector<int64_t> even;
  DecodeAttention task = task_of(given, even);
  View heads = q;
  heads.dims -= 1;
  Result out(q, q.last()), lse(heads, heads.last());
  task.out = static_cast<float*>(out.memory()), task.lse = static_cast<float*>(lse.memory());
  if (q.numel() > 0) without_lock([&] { run(task); });
  return pair_of(out, lse);
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen_native, m) {
  m.def(
      "decode_attention(Tensor(a!) out, Tensor(b!) lse, Tensor q, Tensor keys, Tensor values, Tensor "
      "lengths, "
      "Tensor? query_starts, Tensor? block_table, float scale, int window, float softcap) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgen_native, CPU, m) {
  m.impl("decode_attention", TORCH_BOX(&fastgen::decode_attention_out));
}

FASTGEN_DIRECT(decode_attention, fastgen::decode_attention_direct)
