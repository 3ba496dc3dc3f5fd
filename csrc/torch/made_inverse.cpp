#include "../cpu/made_inverse.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "native.h"

namespace fastgen {
namespace {

constexpr int64_t kResidual = 2, kActivated = 1, kAddend = 4, kGate = 8;  // bits of the wiring
constexpr int64_t kPanelsOfGrain = 16;                                    // panels worth another thread

void sort_by_rank(const int64_t* ranks, int64_t count, int64_t below, std::vector<int64_t>& order) {
  order.clear();
  for (int64_t i = 0; i < count; ++i)
    if (ranks[i] < below) order.push_back(i);
  std::stable_sort(order.begin(), order.end(), [ranks](int64_t a, int64_t b) { return ranks[a] < ranks[b]; });
}

// Where the units of each rank begin among units sorted by rank.
std::vector<int64_t> firsts(const int64_t* ranks, const std::vector<int64_t>& order, int64_t count) {
  std::vector<int64_t> first(count + 1, 0);
  for (const int64_t unit : order) ++first[ranks[unit] + 1];
  std::partial_sum(first.begin(), first.end(), first.begin());
  return first;
}

// Ranks of the features, of each hidden layer's units and of the outputs, one after the other.
std::vector<int64_t> ranks_of(const int64_t* degrees, const std::vector<int64_t>& units, int64_t parameters,
                              int64_t& count) {
  const int64_t total = std::accumulate(units.begin(), units.end() - 1, int64_t{0});
  std::vector<int64_t> known(degrees, degrees + total);
  std::sort(known.begin(), known.end());
  known.erase(std::unique(known.begin(), known.end()), known.end());
  count = static_cast<int64_t>(known.size());
  std::vector<int64_t> ranks;
  for (int64_t i = 0; i < total; ++i)
    ranks.push_back(std::lower_bound(known.begin(), known.end(), degrees[i]) - known.begin());
  for (int64_t output = 0; output < units.back(); ++output) ranks.push_back(ranks[output / parameters]);
  return ranks;
}

// Sorts the units of layer k and lays out its panels; `ranks` are those of its units, `below` of its inputs.
void plan_layer(MadePlan& plan, size_t k, const int64_t* ranks, int64_t needed) {
  MadeLayer& layer = plan.layers[k];
  sort_by_rank(ranks, layer.units, needed, layer.order);
  layer.first = firsts(ranks, layer.order, plan.ranks);
  const int64_t units = static_cast<int64_t>(layer.order.size());
  for (int64_t base = 0; base < units; base += kMadePanel) {
    layer.panel.push_back(plan.packed);
    const int64_t highest = ranks[layer.order[std::min(base + kMadePanel, units) - 1]];
    plan.packed += plan.reach(k, highest) * kMadePanel;
  }
  layer.panel.push_back(plan.packed);
  layer.terms = plan.terms;
  plan.terms += units * ((layer.addend >= 0) + (layer.gate >= 0));
  if (!layer.residual) return;
  const std::vector<int64_t>& partners = plan.layers[k - 2].order;
  std::vector<int64_t> place(plan.layers[k - 2].units, -1);
  for (size_t j = 0; j < partners.size(); ++j) place[partners[j]] = static_cast<int64_t>(j);
  for (const int64_t unit : layer.order) {
    // Its partner has to be known by then.
    require(place[unit] >= 0 && place[unit] < plan.layers[k - 2].first[ranks[unit] + 1], "bad residual");
    layer.skip.push_back(place[unit]);
  }
}

MadePlan plan_of(const int64_t* degrees, const std::vector<int64_t>& units,
                 const std::vector<int64_t>& wiring, int64_t parameters) {
  MadePlan plan{};
  plan.parameters = parameters;
  const std::vector<int64_t> ranks = ranks_of(degrees, units, parameters, plan.ranks);
  sort_by_rank(ranks.data(), units[0], plan.ranks, plan.features);
  plan.first_feature = firsts(ranks.data(), plan.features, plan.ranks);
  const int64_t highest = ranks[plan.features.back()];
  for (int64_t rank = 0; rank < plan.ranks; ++rank)
    plan.widest = std::max(plan.widest, plan.first_feature[rank + 1] - plan.first_feature[rank]);
  const int64_t* of_layer = ranks.data() + units[0];
  int64_t weight = 0, bias = 0, column = 0;
  for (size_t k = 0; k < wiring.size(); of_layer += units[++k]) {
    MadeLayer& layer = plan.layers.emplace_back();
    layer.inputs = units[k], layer.units = units[k + 1], layer.last = k + 1 == wiring.size();
    layer.activated = wiring[k] & kActivated, layer.residual = wiring[k] & kResidual;
    require(!layer.residual || (k >= 2 && !layer.last && units[k + 1] == units[k - 1]), "bad residual");
    if (layer.residual) plan.layers[k - 2].kept = true;
    layer.weight = weight, layer.bias = bias;
    weight += layer.inputs * layer.units, bias += layer.units;
    layer.addend = wiring[k] & kAddend ? column : -1;
    column += wiring[k] & kAddend ? layer.units : 0;
    layer.gate = wiring[k] & kGate ? column : -1;
    column += wiring[k] & kGate ? layer.units : 0;
    // What has the highest feature's degree or more comes too late for any output.
    plan_layer(plan, k, of_layer, layer.last ? plan.ranks : highest);
  }
  return plan;
}

RqSpline curve_of(bool float64, int64_t bins, bool softclip, const std::string& tails,
                  const std::vector<double>& numbers) {
  RqSpline curve{};
  if (bins == 0) return curve;
  require(numbers.size() == 8 && bins > 0, "bad numbers");
  require(tails == "linear" || tails == "circular" || tails == "none", "bad tails");
  curve.tails = tails == "linear" ? SplineTails::linear
                : tails == "none" ? SplineTails::none
                                  : SplineTails::circular;
  curve.bins = bins, curve.inverse = true, curve.float64 = float64, curve.softclip = softclip;
  curve.left = numbers[0], curve.right = numbers[1], curve.bottom = numbers[2], curve.top = numbers[3];
  curve.min_width = numbers[4], curve.min_height = numbers[5], curve.min_derivative = numbers[6];
  curve.scale = numbers[7], curve.clip = -std::log(curve.min_derivative);
  curve.parameters = 3 * bins + (tails == "linear" ? -1 : tails == "none" ? 1 : 0);
  return curve;
}

void check_sizes(const Tensor& z, const Tensor& x, const Tensor& log_det, const Tensor& weight,
                 const Tensor& bias, const std::optional<Tensor>& context, const Tensor& degrees,
                 const std::vector<int64_t>& units, const std::vector<int64_t>& wiring, int64_t parameters) {
  const ScalarType real = z.scalar_type();
  require(real == ScalarType::Float || real == ScalarType::Double, "bad z");
  require(units.size() >= 2 && wiring.size() + 1 == units.size(), "bad units");
  int64_t weights = 0, biases = 0, known = 0, columns = 0;
  for (size_t k = 0; k < wiring.size(); ++k) {
    require(units[k] >= 0 && units[k + 1] >= 0, "bad units");
    weights += units[k] * units[k + 1], biases += units[k + 1], known += units[k];
    columns += units[k + 1] * ((wiring[k] & kAddend ? 1 : 0) + (wiring[k] & kGate ? 1 : 0));
  }
  require(units[0] >= 1 && units.back() == units[0] * parameters, "bad units");
  const auto holds = [](const Tensor& t, ScalarType type, int64_t count) {
    return t.is_contiguous() && t.scalar_type() == type && t.numel() == count;
  };
  require(z.dim() == 2 && z.size(1) == units[0] && holds(z, real, z.numel()), "bad z");
  require(x.dim() == 2 && x.size(1) == units[0] && holds(x, real, z.numel()), "bad x");
  require(holds(log_det, real, z.size(0)), "bad log_det");
  require(holds(weight, real, weights) ||
              (real == ScalarType::Float && holds(weight, ScalarType::BFloat16, weights)),
          "bad weight");
  require(holds(bias, real, biases), "bad bias");
  require(columns == 0 || (context && holds(*context, real, z.size(0) * columns)), "bad context");
  require(holds(degrees, ScalarType::Long, known), "bad degrees");
}

struct Free {
  void operator()(void* p) const { operator delete(p, std::align_val_t{64}); }
};

void run(MadeInverse& task, const MadePlan& plan) {
  const std::unique_ptr<void, Free> pack(operator new(
      std::max<int64_t>(plan.packed, 1) * (task.float64 ? 8 : 4), std::align_val_t{64}));
  task.plan = &plan, task.pack = pack.get();
  const auto pack_layer = FASTGEN_KERNEL(made_pack);
  for (int64_t k = 0; k < static_cast<int64_t>(plan.layers.size()); ++k)
    parallel_for(0, static_cast<int64_t>(plan.layers[k].panel.size()) - 1, kPanelsOfGrain,
                 [&](int64_t first, int64_t last) { pack_layer(task, k, first, last); });
  const auto kernel = FASTGEN_KERNEL(made_inverse);
  task.narrow = task.rows < FASTGEN_KERNEL(made_rows)(task) * torch::stable::get_num_threads();
  const int64_t rows = FASTGEN_KERNEL(made_rows)(task);
  parallel_for(0, (task.rows + rows - 1) / rows, 1,
               [&](int64_t first, int64_t last) { kernel(task, first, last); });
}

// `activation` and, without bins, `form` are numbers of the enumerations; with bins `form` is 1 for softclip.
void made_inverse_out(Tensor x, Tensor log_det, Tensor z, Tensor weight, Tensor bias,
                      std::optional<Tensor> context, Tensor degrees, std::vector<int64_t> units,
                      std::vector<int64_t> wiring, int64_t activation, int64_t form, int64_t bins,
                      std::string tails, std::vector<double> numbers) {
  MadeInverse task{};
  task.float64 = z.scalar_type() == ScalarType::Double;
  task.spline = bins > 0;
  task.curve = curve_of(task.float64, bins, form == 1, tails, numbers);
  const int64_t parameters = task.spline ? task.curve.parameters : 2;
  check_sizes(z, x, log_det, weight, bias, context, degrees, units, wiring, parameters);
  require(activation >= 0 && activation < static_cast<int64_t>(Activation::count), "bad activation");
  task.activation = static_cast<Activation>(activation);
  if (!task.spline) {
    require(form >= 0 && form < static_cast<int64_t>(ScaleMap::count) && numbers.size() == 2, "bad form");
    task.scale_map = static_cast<ScaleMap>(form);
    task.clamp = numbers[0], task.min_scale = numbers[1];
  }
  task.rows = z.size(0);
  if (task.rows == 0) return;
  task.columns = context ? context->size(1) : 0;
  task.bfloat16 = weight.scalar_type() == ScalarType::BFloat16;
  task.z = z.data_ptr(), task.weight = weight.data_ptr(), task.bias = bias.data_ptr();
  task.context = context ? context->data_ptr() : nullptr;
  task.x = x.data_ptr(), task.log_det = log_det.data_ptr();
  run(task, plan_of(data<int64_t>(degrees), units, wiring, parameters));
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen_native, m) {
  m.def(
      "made_inverse(Tensor(a!) x, Tensor(b!) log_det, Tensor z, Tensor weight, Tensor bias, Tensor? context,"
      " Tensor degrees, int[] units, int[] wiring, int activation, int form, int bins, str tails,"
      " float[] numbers) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgen_native, CPU, m) {
  m.impl("made_inverse", TORCH_BOX(&fastgen::made_inverse_out));
}
