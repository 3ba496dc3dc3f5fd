#include "transformer.h"

#include <cstring>

#include "activation.h"
#include "layer_norm.h"
#include "rms_norm.h"
#include "rope.h"

namespace fastgen::FASTGEN_ISA {
namespace {

// A pass as one of its threads goes through it.
class Runner {
 public:
  Runner(const TransformerPass& pass, const DecodePlan& plan, const TransformerScratch& scratch, Member& me)
      : pass_(pass),
        net_(*pass.network),
        plan_(plan),
        s_(scratch),
        me_(me),
        x_(scratch.x),
        next_(scratch.next),
        attended_(scratch.attended),
        rows_(pass.rows) {}

  void run() {
    embed();
    for (int64_t i = 0; i < net_.layer_count; ++i) {
      attend(net_.layers[i], i * pass_.layer_stride);
      if (i + 1 == net_.layer_count) keep_wanted();
      project(net_.layers[i]);
      mlp(net_.layers[i]);
    }
    if (net_.layer_count == 0) keep_wanted();
    finish();
  }

 private:
  int64_t width() const { return net_.heads * net_.head_size; }
  int64_t kv_width() const { return net_.kv_heads * net_.head_size; }

  // Parts of 0 .. count - 1 for the threads; most of them are small, so that all end at about the same time.
  template <class F>
  void divide(int64_t count, F part, int64_t multiple = 1) {
    const int64_t grain = count / (32 * me_.threads() * multiple) * multiple;
    me_.run(count, std::max(grain, multiple), part);
  }

  void embed() {
    divide(rows_, [&](int64_t first, int64_t last) {
      const PackedMatrix& e = net_.embedding;
      for (int64_t r = first; r < last; ++r) {
        float* row = x_ + r * net_.hidden;
        unpack_row(e.format, e.data, e.scale, net_.hidden, pass_.tokens[r], row);
        if (!net_.positions) continue;
        const float* learned = net_.positions + position(r) * net_.hidden;
        for (int64_t i = 0; i < net_.hidden; ++i) row[i] += learned[i];
      }
    });
  }

  int64_t sequence(int64_t row) const {
    const int64_t* starts = pass_.attention.query_starts;
    int64_t first = 0, behind = pass_.attention.sequences;
    while (behind - first > 1) {
      const int64_t middle = (first + behind) / 2;
      (starts[middle] <= row ? first : behind) = middle;
    }
    return first;
  }
  int64_t position(int64_t row) const {
    const int64_t s = sequence(row);
    return pass_.attention.lengths[s] - pass_.attention.query_starts[s + 1] + row;
  }

  // What the products that follow take of their rows besides float.
  struct Rounded {
    bool groups, bytes;
    explicit operator bool() const { return groups || bytes; }
  };

  // h = norm(x), rounded for the integer formats if those that follow need it.
  void normalize(const TransformerNorm& norm, Rounded rounded) {
    divide(rows_, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) {
        Norm task{};
        task.storage = Storage::float32, task.width = net_.hidden, task.eps = net_.eps;
        task.x = x_ + r * net_.hidden, task.y = s_.h + r * net_.hidden;
        task.weight = norm.weight, task.bias = norm.bias;
        net_.norm == NormKind::rms ? rms_norm(task, 0, 1) : layer_norm(task, 0, 1);
      }
      round(rounded, s_.h, net_.hidden, first, last);
    });
  }

  // Products of the same rows with several weights.
  template <size_t N>
  void multiply(const PackedLinear (&tasks)[N]) {
    int64_t units = 0;
    for (const PackedLinear& task : tasks) units += task.units();
    const auto part = [&](int64_t first, int64_t last) {
      for (const PackedLinear& task : tasks) {
        const int64_t own = task.units();
        if (first < own && last > 0) packed_linear(task, std::max<int64_t>(first, 0), std::min(last, own));
        first -= own, last -= own;
      }
    };
    divide(units, part, kPanelsTogether);
  }

  PackedLinear product(const TransformerProjection& p, const float* x, float* y) const {
    PackedLinear task{};
    task.rows = p.weight.data ? rows_ : 0, task.inputs = p.weight.inputs, task.outputs = p.weight.outputs;
    task.x = x, task.x_stride = p.weight.inputs, task.y = y, task.y_stride = p.weight.outputs;
    task.format = p.weight.format, task.weight = p.weight.data, task.weight_scale = p.weight.scale;
    task.bias = p.bias, task.activation = Activation::none;
    task.quantized = s_.quantized, task.bytes = s_.bytes;
    task.unpacked = s_.unpacked + me_.number() * s_.unpacked_stride;
    return task;
  }

  // x += the product: into other rows, which take the place of x, since the sums are formed where they go.
  void add(PackedLinear task) {
    task.residual = x_, task.residual_stride = net_.hidden, task.y = next_;
    multiply({task});
    std::swap(x_, next_);
  }

  template <class... P>
  static Rounded rounded_for(const P&... projections) {
    return {((projections.weight.data && !is_panelled(projections.weight.format)) || ...),
            ((projections.weight.data && projections.weight.format == WeightFormat::int8) || ...)};
  }

  void round(Rounded rounded, const float* x, int64_t width, int64_t first, int64_t last) {
    if (rounded.groups) quantize_rows(x, width, width, s_.quantized, first, last);
    if (rounded.bytes) round_rows(x, width, width, s_.bytes, first, last);
  }

  void attend(const TransformerLayer& layer, int64_t offset) {
    normalize(layer.attention_norm, rounded_for(layer.q, layer.k, layer.v));
    multiply({product(layer.q, s_.h, s_.q), product(layer.k, s_.h, s_.k), product(layer.v, s_.h, s_.v)});
    DecodeAttention task = pass_.attention;
    task.q = s_.q, task.out = attended_;
    task.keys.data = pass_.keys + offset, task.values.data = pass_.values + offset;
    divide(rows_, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) remember(r, offset);
    });
    float* const workspace = s_.attending + me_.number() * plan_.workspace;
    divide(plan_.units, [&](int64_t first, int64_t last) {
      decode_attention(task, plan_, s_.parts, workspace, first, last);
    });
    if (plan_.merges > 0)
      divide(plan_.merges, [&](int64_t first, int64_t last) {
        decode_attention_merge(task, plan_, s_.parts, workspace, first, last);
      });
  }

  // After the last layer's attention the other rows have no use.
  void keep_wanted() {
    rows_ = pass_.wanted_rows;
    divide(rows_, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) {
        const int64_t from = pass_.wanted[r];
        memcpy(next_ + r * net_.hidden, x_ + from * net_.hidden, net_.hidden * sizeof(float));
        memcpy(s_.q + r * width(), attended_ + from * width(), width() * sizeof(float));
      }
    });
    std::swap(x_, next_);
    attended_ = s_.q;
  }

  void project(const TransformerLayer& layer) {
    if (const Rounded rounded = rounded_for(layer.o))
      divide(rows_, [&](int64_t first, int64_t last) { round(rounded, attended_, width(), first, last); });
    add(product(layer.o, attended_, nullptr));
  }

  // Turns the query and the key of a row, and writes key and value into the cache.
  void remember(int64_t r, int64_t offset) {
    const int64_t s = sequence(r), p = position(r), page = pass_.attention.page, size = net_.head_size;
    const int64_t head_stride = page * size;
    const int64_t place = pass_.attention.block_table[s * pass_.attention.table_stride + p / page];
    const int64_t to = offset + place * pass_.attention.keys.page_stride + p % page * size;
    const float *key = s_.k + r * kv_width(), *value = s_.v + r * kv_width();
    if (net_.rope == RopeKind::none) {
      for (int64_t head = 0; head < net_.kv_heads; ++head)
        memcpy(pass_.keys + to + head * head_stride, key + head * size, size * sizeof(float));
    } else {
      const float *cos = net_.cos + p * (size / 2), *sin = net_.sin + p * (size / 2);
      const bool interleaved = net_.rope == RopeKind::interleaved;
      float* q = s_.q + r * width();
      rotate(q, size, q, size, cos, sin, net_.heads, size, interleaved);
      rotate(key, size, pass_.keys + to, head_stride, cos, sin, net_.kv_heads, size, interleaved);
    }
    for (int64_t head = 0; head < net_.kv_heads; ++head)
      memcpy(pass_.values + to + head * head_stride, value + head * size, size * sizeof(float));
  }

  void mlp(const TransformerLayer& layer) {
    const int64_t between = layer.up.weight.outputs;
    const bool gated = layer.gate.weight.data != nullptr;
    normalize(layer.mlp_norm, rounded_for(layer.gate, layer.up));
    PackedLinear gate = product(layer.gate, s_.h, s_.gate), up = product(layer.up, s_.h, s_.up);
    (gated ? gate : up).activation = net_.activation;
    multiply({gate, up});
    const Rounded rounded = rounded_for(layer.down);
    if (gated || rounded)
      divide(rows_, [&](int64_t first, int64_t last) {
        if (gated)
          for (int64_t i = first * between; i < last * between; ++i) s_.up[i] *= s_.gate[i];
        round(rounded, s_.up, between, first, last);
      });
    add(product(layer.down, s_.up, nullptr));
  }

  void finish() {
    normalize(net_.final_norm, rounded_for(net_.head));
    multiply({product(net_.head, s_.h, pass_.logits)});
  }

  const TransformerPass& pass_;
  const Transformer& net_;
  const DecodePlan& plan_;
  const TransformerScratch& s_;
  Member& me_;
  float *x_, *next_, *attended_;
  int64_t rows_;
};

}  // namespace

void transformer(const TransformerPass& pass, const DecodePlan& plan, const TransformerScratch& scratch,
                 Member& me) noexcept {
  Runner(pass, plan, scratch, me).run();
}

}  // namespace fastgen::FASTGEN_ISA
