#include "made_inverse.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "made_lanes.h"

namespace fastgen::FASTGEN_ISA {
namespace {

// The columns of a block of rows: each number of a row is N vectors, the lanes are rows.
template <class V, int N>
class Block {
 public:
  using T = Scalar<V>;
  static constexpr int64_t kRows = N * (sizeof(V) / sizeof(T));

  explicit Block(const MadeInverse& task)
      : task_(task), plan_(*task.plan), activate_(activation_of<V>(task.activation)) {
    const int64_t features = static_cast<int64_t>(plan_.features.size());
    int64_t size = (2 * features + plan_.terms + plan_.widest * plan_.parameters) * N + 2 * task.curve.bins;
    for (const MadeLayer& layer : plan_.layers)
      size += (layer_columns(layer) * (layer.kept ? 2 : 1) + kMadePanel) * N;
    memory_.reset(static_cast<V*>(operator new(size * sizeof(V), std::align_val_t{sizeof(V)})));
    V* next = memory_.get();
    const auto take = [&next](int64_t vectors) { return std::exchange(next, next + vectors); };
    z_ = take(features * N), x_ = take(features * N), terms_ = take(plan_.terms * N);
    parameters_ = take(plan_.widest * plan_.parameters * N), powers_ = take(2 * task.curve.bins);
    for (const MadeLayer& layer : plan_.layers) {
      Layer& mine = layers_.emplace_back();
      mine.sums = take(kMadePanel * N);
      mine.raw = layer.kept ? take(layer_columns(layer) * N) : nullptr;
      mine.seen = take(layer_columns(layer) * N);
    }
  }

  void run(int64_t row) {
    read(row);
    V log_det[N] = {};
    for (int64_t rank = 0; rank < plan_.ranks; ++rank) {
      if (plan_.first_feature[rank] < plan_.first_feature[rank + 1]) {
        advance(plan_.layers.size() - 1, rank);
        invert_features(rank, log_det);
      }
      for (size_t k = 0; k + 1 < plan_.layers.size(); ++k) advance(k, rank);
    }
    write(row, log_det);
  }

 private:
  struct Layer {
    V* sums;            // of the units of the panel at hand
    V* raw;             // what a layer above adds, if one does
    V* seen;            // what the next layer sees
    int64_t added = 0;  // inputs in the sums
  };
  struct Free {
    void operator()(V* p) const { operator delete(p, std::align_val_t{sizeof(V)}); }
  };

  static int64_t layer_columns(const MadeLayer& layer) {
    return layer.last ? 0 : static_cast<int64_t>(layer.order.size());
  }

  const V* inputs_of(size_t k) const { return k == 0 ? x_ : layers_[k - 1].seen; }

  // Gives the units of a rank of layer k what they see, panel by panel; later units of the panel see it too.
  void advance(size_t k, int64_t rank) {
    const MadeLayer& layer = plan_.layers[k];
    const int64_t begin = layer.first[rank], end = layer.first[rank + 1], reach = plan_.reach(k, rank);
    for (int64_t unit = begin; unit < end;) {
      const int64_t panel = unit / kMadePanel, base = panel * kMadePanel;
      const int64_t stop = std::min(end, base + kMadePanel);
      Layer& mine = layers_[k];
      if (unit == base) start_panel(layer, mine, base);
      const T* weights = static_cast<const T*>(task_.pack) + layer.panel[panel] + mine.added * kMadePanel;
      add_inputs<N>(mine.sums, weights, inputs_of(k) + mine.added * N, reach - mine.added);
      mine.added = reach;
      finish(k, layer, mine, unit, stop, base, begin);
      unit = stop;
    }
  }

  void start_panel(const MadeLayer& layer, Layer& mine, int64_t base) {
    const T* bias = static_cast<const T*>(task_.bias) + layer.bias;
    const int64_t units = static_cast<int64_t>(layer.order.size());
    for (int64_t u = 0; u < kMadePanel; ++u)
      for (int v = 0; v < N; ++v)
        mine.sums[u * N + v] = base + u < units ? bias[layer.order[base + u]] - V{} : V{};
    mine.added = 0;
  }

  // From the sums of some units of a panel to what they give; `begin` is the first unit of the rank.
  void finish(size_t k, const MadeLayer& layer, Layer& mine, int64_t unit, int64_t stop, int64_t base,
              int64_t begin) {
    const int64_t units = static_cast<int64_t>(layer.order.size());
    V out[kMadePanel * N];
    for (int64_t j = unit; j < stop; ++j)
      for (int v = 0; v < N; ++v) {
        V sum = mine.sums[(j - base) * N + v];
        int64_t term = layer.terms + j;
        if (layer.addend >= 0) sum += terms_[term * N + v], term += units;
        if (layer.gate >= 0) sum *= terms_[term * N + v];
        if (layer.residual) sum += layers_[k - 2].raw[layer.skip[j] * N + v];
        out[(j - unit) * N + v] = sum;
        if (layer.kept) mine.raw[j * N + v] = sum;
        // The parameters of a feature lie vector by vector.
        if (layer.last) {
          const int64_t place = j - begin, count = plan_.parameters;
          parameters_[(place / count * N + v) * count + place % count] = sum;
        }
      }
    if (layer.last) return;
    if (plan_.layers[k + 1].activated)
      activate_(mine.seen + unit * N, out, (stop - unit) * N);
    else
      std::copy(out, out + (stop - unit) * N, mine.seen + unit * N);
  }

  void invert_features(int64_t rank, V (&log_det)[N]) {
    const int64_t begin = plan_.first_feature[rank], end = plan_.first_feature[rank + 1];
    for (int64_t f = begin; f < end; ++f)
      for (int v = 0; v < N; ++v) {
        const V* raw = parameters_ + ((f - begin) * N + v) * plan_.parameters;
        V change;
        x_[f * N + v] = invert(task_, z_[f * N + v], raw, powers_, change);
        log_det[v] += change;
      }
  }

  // Rows of memory into columns, in the order of the units; rows that are missing are those of the last one.
  void gather(const void* from, int64_t width, int64_t column, const std::vector<int64_t>& order, int64_t row,
              V* to) {
    T* numbers = reinterpret_cast<T*>(to);
    for (int64_t r = 0; r < kRows; ++r) {
      const T* source = static_cast<const T*>(from) + std::min(row + r, task_.rows - 1) * width + column;
      for (size_t j = 0; j < order.size(); ++j) numbers[j * kRows + r] = source[order[j]];
    }
  }

  void read(int64_t row) {
    gather(task_.z, static_cast<int64_t>(plan_.features.size()), 0, plan_.features, row, z_);
    for (const MadeLayer& layer : plan_.layers) {
      V* to = terms_ + layer.terms * N;
      for (const int64_t column : {layer.addend, layer.gate}) {
        if (column < 0) continue;
        gather(task_.context, task_.columns, column, layer.order, row, to);
        to += layer.order.size() * N;
      }
    }
  }

  void write(int64_t row, const V (&log_det)[N]) {
    const int64_t features = static_cast<int64_t>(plan_.features.size());
    const T *x = reinterpret_cast<const T*>(x_), *sums = reinterpret_cast<const T*>(log_det);
    const int64_t rows = std::min(kRows, task_.rows - row);
    for (int64_t r = 0; r < rows; ++r) {
      T* to = static_cast<T*>(task_.x) + (row + r) * features;
      for (int64_t f = 0; f < features; ++f) to[plan_.features[f]] = x[f * kRows + r];
    }
    std::memcpy(static_cast<T*>(task_.log_det) + row, sums, rows * sizeof(T));
  }

  const MadeInverse& task_;
  const MadePlan& plan_;
  ActivateAll<V> activate_;
  std::unique_ptr<V, Free> memory_;
  V *z_, *x_, *terms_, *parameters_, *powers_;
  std::vector<Layer> layers_;
};

template <class V, int N>
void run_blocks(const MadeInverse& task, int64_t first, int64_t last) {
  Block<V, N> block(task);
  for (int64_t b = first; b < last; ++b) block.run(b * Block<V, N>::kRows);
}

template <class T, class W>
void pack_panels(const MadeInverse& task, size_t k, int64_t first, int64_t last) {
  const MadeLayer& layer = task.plan->layers[k];
  const std::vector<int64_t>& inputs = task.plan->inputs(k);
  const int64_t units = static_cast<int64_t>(layer.order.size());
  for (int64_t p = first; p < last; ++p) {
    T* to = static_cast<T*>(task.pack) + layer.panel[p];
    const int64_t count = (layer.panel[p + 1] - layer.panel[p]) / kMadePanel;
    for (int64_t u = 0; u < kMadePanel; ++u) {
      const int64_t unit = std::min(p * kMadePanel + u, units - 1);
      const W* row = static_cast<const W*>(task.weight) + layer.weight + layer.order[unit] * layer.inputs;
      for (int64_t i = 0; i < count; ++i) {
        if constexpr (sizeof(W) == 2) {
          const uint32_t bits = static_cast<uint32_t>(row[inputs[i]].bits) << 16;
          std::memcpy(to + i * kMadePanel + u, &bits, sizeof bits);
        } else {
          to[i * kMadePanel + u] = row[inputs[i]];
        }
      }
    }
  }
}

}  // namespace

int64_t made_rows(const MadeInverse& task) { return (task.narrow ? 1 : 2) * kBytes / (task.float64 ? 8 : 4); }

void made_pack(const MadeInverse& task, int64_t layer, int64_t first, int64_t last) {
  const auto run = task.float64    ? pack_panels<double, double>
                   : task.bfloat16 ? pack_panels<float, BFloat16>
                                   : pack_panels<float, float>;
  run(task, static_cast<size_t>(layer), first, last);
}

void made_inverse(const MadeInverse& task, int64_t first, int64_t last) {
  const auto run = task.float64 ? (task.narrow ? run_blocks<F64, 1> : run_blocks<F64, 2>)
                                : (task.narrow ? run_blocks<F32, 1> : run_blocks<F32, 2>);
  run(task, first, last);
}

}  // namespace fastgen::FASTGEN_ISA
