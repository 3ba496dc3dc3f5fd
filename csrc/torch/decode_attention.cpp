#include "../cpu/decode_attention.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "../cpu/decode_plan.h"
#include "native.h"

namespace fastgen {
namespace {

constexpr int64_t kMergeGrain = 1 << 17;

KeyCache cache_of(const Tensor& t, const Tensor& keys, const char* what) {
  require(t.dim() == 4 && t.scalar_type() == keys.scalar_type(), what);
  for (int i = 0; i < 4; ++i) require(t.size(i) == keys.size(i), what);
  require(t.size(3) == 1 || t.stride(3) == 1, what);
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
}

const int64_t* numbers(const Tensor& t, int64_t count, const char* what) {
  require(t.is_contiguous() && t.scalar_type() == ScalarType::Long && t.numel() == count, what);
  return data<int64_t>(t);
}

float* floats(const Tensor& t, int64_t count, const char* what) {
  require(t.is_contiguous() && t.scalar_type() == ScalarType::Float && t.numel() == count, what);
  return data<float>(t);
}

void run(const DecodeAttention& task) {
  const DecodeWork work(task);
  const DecodePlan& plan = work.plan();
  // Not initialized; floats of 64 bytes' alignment.
  const std::unique_ptr<char[]> memory(new char[plan.scratch * sizeof(float) + 64]);
  float* scratch = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory.get()) + 63) / 64 * 64);
  const auto kernel = FASTGEN_KERNEL(decode_attention);
  parallel_for(0, plan.units, 1,
               [&](int64_t first, int64_t last) { kernel(task, plan, scratch, first, last); });
  const auto merge = FASTGEN_KERNEL(decode_attention_merge);
  // Waking a thread takes as long as merging this many numbers.
  const int64_t grain = kMergeGrain / std::max<int64_t>(1, plan.scratch / std::max<int64_t>(1, plan.merges));
  parallel_for(0, plan.merges, std::max<int64_t>(1, grain),
               [&](int64_t first, int64_t last) { merge(task, plan, scratch, first, last); });
}

void decode_attention_out(Tensor out, Tensor lse, Tensor q, Tensor keys, Tensor values, Tensor lengths,
                          std::optional<Tensor> query_starts, std::optional<Tensor> block_table, double scale,
                          int64_t window, double softcap) {
  DecodeAttention task{};
  require(q.dim() == 3 && keys.dim() == 4 && q.size(2) == keys.size(3) && q.size(2) > 0, "bad q");
  require(keys.size(1) > 0 && q.size(1) % keys.size(1) == 0, "bad keys");
  task.sequences = lengths.numel(), task.query_heads = q.size(1), task.key_heads = keys.size(1);
  task.size = q.size(2), task.q_stride = task.out_stride = q.size(1) * q.size(2);
  task.q = floats(q, q.numel(), "bad q"), task.out = floats(out, q.numel(), "bad out");
  task.lse = floats(lse, q.size(0) * q.size(1), "bad lse");
  task.lengths = numbers(lengths, task.sequences, "bad lengths");
  std::vector<int64_t> even(query_starts ? 0 : task.sequences + 1);
  for (size_t s = 1; s < even.size(); ++s) even[s] = even[s - 1] + q.size(0) / task.sequences;
  task.query_starts =
      query_starts ? numbers(*query_starts, task.sequences + 1, "bad query_starts") : even.data();
  task.bfloat16 = keys.scalar_type() == ScalarType::BFloat16;
  require(task.bfloat16 || keys.scalar_type() == ScalarType::Float, "bad keys");
  task.keys = cache_of(keys, keys, "bad keys"), task.values = cache_of(values, keys, "bad values");
  task.page = keys.size(2);
  int64_t most = task.page;
  if (block_table) {
    require(block_table->dim() == 2 && block_table->is_contiguous(), "bad block_table");
    require(block_table->scalar_type() == ScalarType::Int, "bad block_table");
    require(block_table->size(0) == task.sequences && task.page % kKeyBlock == 0 && task.page > 0,
            "bad block_table");
    task.block_table = data<int32_t>(*block_table), task.table_stride = block_table->size(1);
    most = task.page * task.table_stride;
  } else {
    require(keys.size(0) == task.sequences, "bad keys");
  }
  require(task.query_starts[0] == 0 && task.query_starts[task.sequences] == q.size(0), "bad query_starts");
  for (int64_t s = 0; s < task.sequences; ++s) {
    require(task.query_starts[s] <= task.query_starts[s + 1], "bad query_starts");
    require(task.lengths[s] >= 0 && task.lengths[s] <= most, "bad lengths");
    if (!block_table) continue;
    for (int64_t i = 0; i * task.page < task.lengths[s]; ++i) {
      const int32_t page = task.block_table[s * task.table_stride + i];
      require(page >= 0 && page < keys.size(0), "bad block_table");
    }
  }
  require(window >= 0 && softcap >= 0, "bad window or softcap");
  task.scale = static_cast<float>(scale), task.softcap = static_cast<float>(softcap), task.window = window;
  if (q.numel() > 0) run(task);
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
