#include "../cpu/transformer.h"

#include <algorithm>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "../cpu/decode_plan.h"
#include "native.h"

namespace fastgen {

namespace {

constexpr int64_t kMostOfASize = int64_t{1} << 24;  // so that no product of two sizes overflows

struct Free {
  void operator()(char* p) const { operator delete(p, std::align_val_t{64}); }
};

// The memory of a pass.
class Scratch {
 public:
  Scratch(const TransformerPass& pass, const DecodePlan& plan, int64_t threads) {
    const Transformer& net = *pass.network;
    const int64_t rows = std::max(pass.rows, pass.wanted_rows);
    const int64_t width = net.heads * net.head_size, kv_width = net.kv_heads * net.head_size;
    int64_t between = 0;
    for (int64_t i = 0; i < net.layer_count; ++i)
      between = std::max(between, net.layers[i].up.weight.outputs);
    place(s_.x, rows * net.hidden), place(s_.next, rows * net.hidden), place(s_.h, rows * net.hidden);
    place(s_.q, rows * width), place(s_.attended, rows * width);
    place(s_.k, rows * kv_width), place(s_.v, rows * kv_width);
    place(s_.gate, rows * between), place(s_.up, rows * between);
    place(s_.parts, plan.scratch), place(s_.attending, threads * plan.workspace);
    const int64_t inputs = std::max({net.hidden, width, between});
    place(s_.quantized, rows * quantized_groups(inputs)), place(s_.bytes, rows * byte_blocks(inputs));
    s_.unpacked_stride = byte_blocks(inputs);
    place(s_.unpacked, threads * s_.unpacked_stride);
    memory_.reset(static_cast<char*>(operator new(bytes_, std::align_val_t{64})));
    for (const auto& [pointer, at] : places_) *pointer = memory_.get() + at;
  }
  const TransformerScratch& get() const { return s_; }

 private:
  template <class T>
  void place(T*& pointer, int64_t count) {
    places_.emplace_back(reinterpret_cast<char**>(&pointer), bytes_);
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }

  TransformerScratch s_{};
  int64_t bytes_ = 0;
  std::vector<std::pair<char**, int64_t>> places_;
  std::unique_ptr<char, Free> memory_;
};

// Takes what `TransformerWeights.flat()` lists slot by slot.
class Weights {
 public:
  Weights(const std::vector<Tensor>& tensors, const std::string& slots) : tensors_(tensors), slots_(slots) {}

  // The slot's letter, and its tensor unless the letter is "-".
  char next(const Tensor*& tensor) {
    require(slot_ < slots_.size(), "too few slots");
    const char letter = slots_[slot_++];
    tensor = nullptr;
    if (letter == '-') return letter;
    require(tensor_ < tensors_.size(), "too few weights");
    tensor = &tensors_[tensor_++];
    require(tensor->is_contiguous(), "bad weight");
    return letter;
  }

  // `count` numbers, or null.
  const float* numbers(int64_t count, bool needed = false) {
    const Tensor* t;
    const char letter = next(t);
    require(!needed || t, "a table is missing");
    if (!t) return nullptr;
    require(letter == 't' && t->scalar_type() == ScalarType::Float && t->numel() == count, "bad table");
    return data<const float>(*t);
  }

  // Rows of `width` numbers for as many positions as there are, which lowers `context`.
  const float* table(int64_t width, int64_t& context) {
    const Tensor* t;
    const char letter = next(t);
    if (!t) return nullptr;
    require(letter == 't' && t->scalar_type() == ScalarType::Float && width > 0, "bad table");
    context = std::min(context, t->numel() / width);
    return data<const float>(*t);
  }

  PackedMatrix matrix(int64_t outputs, int64_t inputs, bool needed = true) {
    const Tensor* t;
    const char letter = next(t);
    require(!needed || t, "a weight is missing");
    const float* scale = numbers(outputs, letter == 'i');
    if (!t) return {WeightFormat::float32, nullptr, nullptr, outputs, inputs};
    const WeightFormat format = format_of(letter);
    require(is_panelled(format) || inputs % kWeightBlock == 0, "bad weight");
    const int64_t rows = is_panelled(format) ? (outputs + kPanel - 1) / kPanel : outputs;
    const int64_t bytes = t->numel() * static_cast<int64_t>(t->element_size());
    require(bytes == rows * weight_stride(format, inputs), "bad weight");
    return {format, t->data_ptr(), scale, outputs, inputs};
  }

  TransformerNorm norm(int64_t width) {
    const float* weight = numbers(width, true);
    return {weight, numbers(width)};
  }

  TransformerProjection projection(int64_t outputs, int64_t inputs, bool needed = true) {
    const PackedMatrix weight = matrix(outputs, inputs, needed);
    return {weight, numbers(outputs)};
  }

 private:
  static WeightFormat format_of(char letter) {
    constexpr char kLetters[] = "fbi018";
    for (int64_t i = 0; i < static_cast<int64_t>(WeightFormat::count); ++i)
      if (kLetters[i] == letter) return static_cast<WeightFormat>(i);
    require(false, "bad format");
    return WeightFormat::count;
  }

  const std::vector<Tensor>& tensors_;
  const std::string& slots_;
  size_t tensor_ = 0, slot_ = 0;
};

// `context`: positions of the tables; enough for any if there is no table.
Transformer network_of(const std::vector<Tensor>& tensors, const std::string& slots,
                       const std::vector<int64_t>& sizes, std::vector<TransformerLayer>& layers,
                       int64_t& context) {
  require(sizes.size() >= 5 && *std::min_element(sizes.begin(), sizes.end()) > 0 &&
              *std::max_element(sizes.begin(), sizes.end()) <= kMostOfASize,
          "bad sizes");
  Transformer net{};
  const int64_t vocabulary = sizes[0], hidden = sizes[1];
  net.hidden = hidden, net.heads = sizes[2], net.kv_heads = sizes[3], net.head_size = sizes[4];
  require(net.heads % net.kv_heads == 0, "bad heads");
  const int64_t width = net.heads * net.head_size, kv_width = net.kv_heads * net.head_size;
  require(width <= kMostOfASize, "bad heads");
  Weights weights(tensors, slots);
  net.embedding = weights.matrix(vocabulary, hidden);
  context = INT64_MAX;
  net.positions = weights.table(hidden, context);
  net.cos = weights.table(net.head_size / 2, context);
  net.sin = weights.table(net.head_size / 2, context);
  net.final_norm = weights.norm(hidden);
  layers.resize(sizes.size() - 5);
  net.layers = layers.data(), net.layer_count = static_cast<int64_t>(layers.size());
  for (TransformerLayer& layer : layers) {
    layer.attention_norm = weights.norm(hidden);
    layer.mlp_norm = weights.norm(hidden);
  }
  net.head = weights.projection(vocabulary, hidden);
  for (size_t i = 0; i < layers.size(); ++i) {
    TransformerLayer& layer = layers[i];
    const int64_t between = sizes[5 + i];
    layer.q = weights.projection(width, hidden);
    layer.k = weights.projection(kv_width, hidden);
    layer.v = weights.projection(kv_width, hidden);
    layer.o = weights.projection(hidden, width);
    layer.gate = weights.projection(between, hidden, false);
    layer.up = weights.projection(between, hidden);
    layer.down = weights.projection(hidden, between);
  }
  return net;
}

const int64_t* indices(const Tensor& t, int64_t count, const char* what) {
  require(t.is_contiguous() && t.scalar_type() == ScalarType::Long && t.numel() == count, what);
  return data<const int64_t>(t);
}

// What the Python side checked value by value is checked again where memory is at stake.
void check_sequences(const TransformerPass& pass, int64_t vocabulary, int64_t pages, int64_t context) {
  const DecodeAttention& a = pass.attention;
  require(a.query_starts[0] == 0 && a.query_starts[a.sequences] == pass.rows, "bad query_starts");
  for (int64_t s = 0; s < a.sequences; ++s) {
    const int64_t new_tokens = a.query_starts[s + 1] - a.query_starts[s], length = a.lengths[s];
    require(new_tokens >= 0 && length >= new_tokens && length <= context, "bad lengths");
    require(length <= a.table_stride * a.page, "bad block_table");
    const int64_t used = (length + a.page - 1) / a.page;
    for (int64_t i = 0; i < used; ++i) {
      const int64_t page = a.block_table[s * a.table_stride + i];
      require(page >= 0 && page < pages, "bad block_table");
    }
  }
  for (int64_t r = 0; r < pass.rows; ++r)
    require(pass.tokens[r] >= 0 && pass.tokens[r] < vocabulary, "bad tokens");
  for (int64_t r = 0; r < pass.wanted_rows; ++r)
    require(pass.wanted[r] >= 0 && pass.wanted[r] < pass.rows, "bad wanted");
}

// `norm`, `activation`, `rope` are numbers of their enumerations; `numbers` are eps, scale, softcap.
void transformer_out(Tensor logits, Tensor tokens, Tensor query_starts, Tensor lengths, Tensor block_table,
                     Tensor keys, Tensor values, Tensor wanted, std::vector<Tensor> weights,
                     std::string slots, std::vector<int64_t> sizes, int64_t norm, int64_t activation,
                     int64_t rope, int64_t window, std::vector<double> numbers) {
  int64_t context = 0;
  std::vector<TransformerLayer> layers;
  Transformer net = network_of(weights, slots, sizes, layers, context);
  require(norm >= 0 && norm < static_cast<int64_t>(NormKind::count), "bad norm");
  require(rope >= 0 && rope < static_cast<int64_t>(RopeKind::count), "bad rope");
  require(activation >= 0 && activation < static_cast<int64_t>(Activation::count), "bad activation");
  require(numbers.size() == 3 && window >= 0, "bad numbers");
  net.norm = static_cast<NormKind>(norm), net.rope = static_cast<RopeKind>(rope);
  net.activation = static_cast<Activation>(activation), net.eps = static_cast<float>(numbers[0]);
  require(net.rope == RopeKind::none || (net.cos && net.sin && net.head_size % 2 == 0), "bad rope");

  TransformerPass pass{};
  pass.network = &net;
  pass.rows = tokens.numel(), pass.wanted_rows = wanted.numel();
  pass.tokens = indices(tokens, pass.rows, "bad tokens");
  pass.wanted = indices(wanted, pass.wanted_rows, "bad wanted");
  const auto is_cache = [&](const Tensor& t) {
    return t.dim() == 5 && t.is_contiguous() && t.scalar_type() == ScalarType::Float &&
           t.size(0) == net.layer_count && t.size(2) == net.kv_heads && t.size(4) == net.head_size;
  };
  require(is_cache(keys) && is_cache(values) && keys.size(1) == values.size(1), "bad cache");
  const int64_t page = keys.size(3), head_stride = page * net.head_size;
  require(page == values.size(3) && page > 0 && page % kKeyBlock == 0, "bad cache");
  pass.keys = data<float>(keys), pass.values = data<float>(values);
  pass.layer_stride = keys.size(1) * net.kv_heads * head_stride;

  DecodeAttention& a = pass.attention;
  a.sequences = lengths.numel(), a.query_heads = net.heads, a.key_heads = net.kv_heads;
  a.size = net.head_size, a.page = page;
  a.lengths = indices(lengths, a.sequences, "bad lengths");
  a.query_starts = indices(query_starts, a.sequences + 1, "bad query_starts");
  require(block_table.dim() == 2 && block_table.size(0) == a.sequences && block_table.is_contiguous() &&
              block_table.scalar_type() == ScalarType::Int,
          "bad block_table");
  a.block_table = data<const int32_t>(block_table), a.table_stride = block_table.size(1);
  a.keys = a.values = {nullptr, net.kv_heads * head_stride, head_stride, net.head_size};
  a.q_stride = a.out_stride = net.heads * net.head_size;
  a.far = true;  // each layer has its own
  a.scale = static_cast<float>(numbers[1]), a.softcap = static_cast<float>(numbers[2]), a.window = window;
  check_sequences(pass, sizes[0], keys.size(1), context);
  require(logits.dim() == 2 && logits.is_contiguous() && logits.scalar_type() == ScalarType::Float &&
              logits.size(0) == pass.wanted_rows && logits.size(1) == sizes[0],
          "bad logits");
  pass.logits = data<float>(logits);
  if (pass.rows == 0) return;

  const DecodeWork work(a);
  const auto kernel = FASTGEN_KERNEL(transformer);
  const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const DecodePlan& plan = work.plan();
  const Scratch scratch(pass, plan, threads);
  const TransformerScratch& memory = scratch.get();
  Team team(threads);
  parallel_for(0, threads, 1, [&](int64_t first, int64_t) {
    Member me(team, first);
    static_assert(noexcept(kernel(pass, plan, memory, me)));
    kernel(pass, plan, memory, me);
  });
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen_native, m) {
  m.def(
      "transformer(Tensor(a!) logits, Tensor tokens, Tensor query_starts, Tensor lengths, Tensor block_table,"
      " Tensor(b!) keys, Tensor(c!) values, Tensor wanted, Tensor[] weights, str slots, int[] sizes,"
      " int norm, int activation, int rope, int window, float[] numbers) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgen_native, CPU, m) {
  m.impl("transformer", TORCH_BOX(&fastgen::transformer_out));
}
