#include "../cpu/sample_logits.h"

#include <algorithm>
#include <optional>

#include "fastgen/streams.h"
#include "native.h"

namespace fastgen {
namespace {

constexpr int64_t kGrain = 1 << 15;  // logits that are worth a thread: some 10 us

const int64_t* tokens(const std::optional<Tensor>& t, int64_t rows, int64_t& length, const char* what) {
  length = 0;
  if (!t) return nullptr;
  require(t->dim() == 2 && t->is_contiguous() && t->scalar_type() == ScalarType::Long && t->size(0) == rows,
          what);
  length = t->size(1);
  return data<int64_t>(*t);
}

const int64_t* numbers(const Tensor& t, int64_t rows, const char* what) {
  require(t.dim() == 1 && t.is_contiguous() && t.scalar_type() == ScalarType::Long && t.size(0) == rows,
          what);
  return data<int64_t>(t);
}

void sample_logits_out(Tensor token, Tensor log_prob, Tensor logits, int64_t seed, Tensor sample_ids,
                       Tensor step, Tensor settings, std::optional<Tensor> prompt_tokens,
                       std::optional<Tensor> output_tokens, std::optional<Tensor> logit_bias) {
  require(logits.dim() == 2 && logits.is_contiguous() && logits.scalar_type() == ScalarType::Float &&
              logits.size(1) >= 1 && logits.size(1) <= 1 << 22,
          "bad logits");
  SampleLogits task{};
  task.rows = logits.size(0), task.vocabulary = logits.size(1);
  task.logits = data<float>(logits);
  require(settings.dim() == 2 && settings.is_contiguous() && settings.scalar_type() == ScalarType::Double &&
              settings.size(0) == task.rows && settings.size(1) == SampleLogits::kSettings,
          "bad settings");
  task.settings = data<double>(settings);
  task.sample_ids = numbers(sample_ids, task.rows, "bad sample_ids");
  task.step = numbers(step, task.rows, "bad step");
  task.token = const_cast<int64_t*>(numbers(token, task.rows, "bad token"));
  require(log_prob.is_contiguous() && log_prob.scalar_type() == ScalarType::Float &&
              log_prob.numel() == task.rows,
          "bad log_prob");
  task.log_prob = data<float>(log_prob);
  task.prompt = tokens(prompt_tokens, task.rows, task.prompt_length, "bad prompt_tokens");
  task.output = tokens(output_tokens, task.rows, task.output_length, "bad output_tokens");
  if (logit_bias) {
    const int64_t rows = logit_bias->dim() == 2 ? task.rows : 1;
    require(logit_bias->is_contiguous() && logit_bias->scalar_type() == ScalarType::Float &&
                logit_bias->numel() == rows * task.vocabulary,
            "bad logit_bias");
    task.bias = data<float>(*logit_bias);
    task.bias_stride = logit_bias->dim() == 2 ? task.vocabulary : 0;
  }
  task.seed = static_cast<uint64_t>(seed), task.stream = kTokenStream;
  const auto kernel = FASTGEN_KERNEL(sample_logits);
  parallel_for(0, task.rows, std::max<int64_t>(kGrain / task.vocabulary, 1),
               [&](int64_t first, int64_t last) { kernel(task, first, last); });
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen_native, m) {
  m.def(
      "sample_logits(Tensor(a!) token, Tensor(b!) log_prob, Tensor logits, int seed, Tensor sample_ids, "
      "Tensor "
      "step, Tensor settings, Tensor? prompt_tokens, Tensor? output_tokens, Tensor? logit_bias) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgen_native, CPU, m) {
  m.impl("sample_logits", TORCH_BOX(&fastgen::sample_logits_out));
}
