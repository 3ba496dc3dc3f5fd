#include "../cpu/rbm_gibbs.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>

#include "native.h"

namespace fastgen {
namespace {

constexpr int64_t kSteps = int64_t{1} << 32;  // as many as the counter tells apart

template <class T>
T* rows(const Tensor& t, ScalarType dtype, int64_t chains, int64_t units, const char* what) {
  require(t.dim() == 2 && t.is_contiguous() && t.scalar_type() == dtype && t.size(0) == chains &&
              t.size(1) == units,
          what);
  return data<T>(t);
}

RbmStates states(const Tensor& from, const Tensor& to, int64_t chains, int64_t units, const char* what) {
  const bool floats = from.scalar_type() == ScalarType::Float;
  if (floats)
    return {rows<float>(from, ScalarType::Float, chains, units, what),
            rows<float>(to, ScalarType::Float, chains, units, what), true};
  return {rows<uint8_t>(from, ScalarType::Byte, chains, units, what),
          rows<uint8_t>(to, ScalarType::Byte, chains, units, what), false};
}

template <class T>
const T* vector_of(const Tensor& t, ScalarType dtype, int64_t count, const char* what) {
  require(t.dim() == 1 && t.is_contiguous() && t.scalar_type() == dtype && t.size(0) == count, what);
  return data<T>(t);
}

void clamp(RbmGibbs& task, const std::optional<Tensor>& mask) {
  if (!mask) return;
  const int64_t dim = mask->dim();
  require(mask->is_contiguous() && mask->scalar_type() == ScalarType::Bool && (dim == 1 || dim == 2) &&
              mask->size(dim - 1) == task.visible && (dim == 1 || mask->size(0) == task.chains),
          "bad clamp_mask");
  task.clamp_mask = data<uint8_t>(*mask);
  task.clamp_stride = dim == 2 ? task.visible : 0;
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

bool run(const RbmGibbs& task) {
  const RbmPlan plan = FASTGEN_KERNEL(rbm_plan)(task, torch::stable::get_num_threads());
  const std::unique_ptr<void, Free> workspace(std::aligned_alloc(64, plan.workspace_bytes));
  require(workspace != nullptr, "not enough memory for the packed weights");
  std::memset(workspace.get(), 0, plan.progress_bytes);
  const auto kernel = FASTGEN_KERNEL(rbm_gibbs);
  std::atomic<bool> valid{true};
  parallel_for(0, plan.teams * plan.members, 1, [&](int64_t first, int64_t last) {
    if (!kernel(task, plan, workspace.get(), first, last)) valid = false;
  });
  return valid;
}

void set_weight(RbmGibbs& task, const Tensor& weight) {
  require(weight.dim() == 2 && weight.numel() > 0, "bad weight");
  task.visible = weight.size(0), task.hidden = weight.size(1);
  task.visible_step = task.hidden, task.hidden_step = 1;
  if (!weight.is_contiguous()) {
    require(weight.stride(0) == 1 && weight.stride(1) == task.visible, "bad layout of weight");
    task.visible_step = 1, task.hidden_step = task.visible;
  }
  task.bfloat16 = weight.scalar_type() == ScalarType::BFloat16;
  require(task.bfloat16 || weight.scalar_type() == ScalarType::Float, "bad weight");
  task.weight = weight.data_ptr();
}

bool rbm_gibbs_out(Tensor v, Tensor h, Tensor v_new, Tensor h_new, Tensor v_mean, Tensor h_mean,
                   Tensor weight, Tensor v_bias, Tensor h_bias, Tensor beta, std::optional<Tensor> clamp_mask,
                   int64_t half_steps, bool gaussian, int64_t seed, Tensor sample_ids, int64_t first_step,
                   int64_t draw_stream, int64_t noise_stream) {
  RbmGibbs task{};
  set_weight(task, weight);
  require(v.dim() == 2 && v_mean.dim() == 2 && h_mean.dim() == 2, "bad v, v_mean or h_mean");
  require(half_steps >= 0 && first_step >= 0 && half_steps <= kSteps - first_step, "bad steps");
  task.chains = v.size(0), task.half_steps = half_steps;
  if (task.chains == 0) return true;
  task.seed = static_cast<uint64_t>(seed), task.first_step = static_cast<uint32_t>(first_step);
  task.draw_stream = static_cast<uint32_t>(draw_stream),
  task.noise_stream = static_cast<uint32_t>(noise_stream);
  task.sample_ids = vector_of<int64_t>(sample_ids, ScalarType::Long, task.chains, "bad sample_ids");
  task.v_bias = vector_of<float>(v_bias, ScalarType::Float, task.visible, "bad v_bias");
  task.h_bias = vector_of<float>(h_bias, ScalarType::Float, task.hidden, "bad h_bias");
  task.beta = vector_of<float>(beta, ScalarType::Float, task.chains, "bad beta");
  if (gaussian)
    task.v_real = rows<float>(v_new, ScalarType::Float, task.chains, task.visible, "bad v");
  else
    task.v = states(v, v_new, task.chains, task.visible, "bad v");
  task.h = states(h, h_new, task.chains, task.hidden, "bad h");
  if (v_mean.size(0))
    task.v_mean = rows<float>(v_mean, ScalarType::Float, task.chains, task.visible, "bad v_mean");
  if (h_mean.size(0))
    task.h_mean = rows<float>(h_mean, ScalarType::Float, task.chains, task.hidden, "bad h_mean");
  clamp(task, clamp_mask);
  return run(task);
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen_native, m) {
  m.def(
      "rbm_gibbs(Tensor v, Tensor h, Tensor(a!) v_new, Tensor(b!) h_new, Tensor(c!) v_mean, Tensor(d!) "
      "h_mean,"
      " Tensor weight, Tensor v_bias, Tensor h_bias, Tensor beta, Tensor? clamp_mask, int half_steps, bool"
      " gaussian, int seed, Tensor sample_ids, int first_step, int draw_stream, int noise_stream) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(fastgen_native, CPU, m) { m.impl("rbm_gibbs", TORCH_BOX(&fastgen::rbm_gibbs_out)); }
