#include "rbm_gibbs.h"

#include "rbm_draw.h"
#include "rbm_pack.h"
#include "rbm_rounds.h"

namespace fastgen::FASTGEN_ISA {
namespace {

constexpr int64_t kTileChains = 512;   // chains that share tables; their sums stay in the second cache
constexpr int64_t kDirectChains = 6;   // up to here reading rows is cheaper than building tables
constexpr int64_t kTeamChains = 256;   // with fewer a thread, threads split the units: tables are built once
constexpr int64_t kPackedChains = 32;  // an item of packing

// Hands out pieces of the workspace; with a null base it only counts.
struct Carver {
  char* base;
  int64_t used = 0;

  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(base + used);
    used += divide_up(count * static_cast<int64_t>(sizeof(T)), 64) * 64;
    return base ? piece : nullptr;
  }
};

struct Scratch {
  float *table, *sums;
  GroupRows* list;
  int64_t* list_length;
};

// Where the threads stand. Zeros at the start.
struct Progress {
  RoundsDone *packed, *teams;  // one, and one a team
  uint64_t *pack_claims, *block_claims;
  uint32_t* wrong;  // not 0 if a state is neither 0 nor 1
  int64_t blocks;   // of the larger layer

  Progress(const RbmGibbs& task, int64_t n_teams, Carver& carver)
      : blocks(divide_up(task.visible > task.hidden ? task.visible : task.hidden, kWidth)) {
    packed = carver.take<RoundsDone>(1);
    teams = carver.take<RoundsDone>(n_teams);
    pack_claims = carver.take<uint64_t>(2 * blocks + divide_up(task.chains, kPackedChains) + 1);
    block_claims = carver.take<uint64_t>(2 * blocks * n_teams);
    wrong = carver.take<uint32_t>(1);
  }

  uint64_t* claims(int64_t team, bool to_visible) const {
    return block_claims + (2 * team + to_visible) * blocks;
  }
};

template <class T>
struct Workspace {
  Layer<T> to_hidden, to_visible;
  uint32_t *v, *h;  // words of states: word w of chain c at w * chains + c
  Scratch first;
  int64_t scratch_bytes;

  Workspace(const RbmGibbs& task, Carver& carver) {
    to_hidden = layer(task.visible, task.hidden, 0, carver);
    to_visible =
        layer(task.hidden, task.visible, task.clamp_mask && task.clamp_stride ? task.chains : 0, carver);
    v = carver.take<uint32_t>(to_visible.output_words() * task.chains);
    h = carver.take<uint32_t>(to_hidden.output_words() * task.chains);
    const int64_t before = carver.used,
                  groups = divide_up(task.visible > task.hidden ? task.visible : task.hidden, 32) * kGroups;
    first.table = carver.take<float>(kTableFloats);
    first.sums = carver.take<float>(smaller(kTileChains, task.chains) * kWidth);
    first.list = carver.take<GroupRows>(smaller(kDirectChains, task.chains) * (groups + kAhead));
    first.list_length = carver.take<int64_t>(kDirectChains);
    scratch_bytes = carver.used - before;
  }

  static Layer<T> layer(int64_t inputs, int64_t outputs, int64_t free_stride, Carver& carver) {
    Layer<T> layer{inputs, outputs, nullptr, nullptr, nullptr, free_stride};
    layer.weights = carver.take<T>(layer.blocks() * layer.rows() * kWidth);
    layer.bias = carver.take<float>(layer.blocks() * kWidth);
    layer.free = carver.take<uint32_t>(layer.output_words() * (free_stride ? free_stride : 1));
    return layer;
  }

  Scratch scratch(int64_t worker) const {
    const int64_t skip = worker * scratch_bytes;
    const auto moved = [&](auto* p) {
      return reinterpret_cast<decltype(p)>(reinterpret_cast<char*>(p) + skip);
    };
    return {moved(first.table), moved(first.sums), moved(first.list), moved(first.list_length)};
  }
};

struct Range {
  int64_t first, last;
};

FASTGEN_INLINE Range part(int64_t count, int64_t index, int64_t parts) {
  return {count * index / parts, count * (index + 1) / parts};
}

// One half step of some chains: `layer` from the states `from` (or the real rows) to the words `to` (or the
// real rows).
template <class T>
struct HalfStep {
  const RbmGibbs& task;
  const RoundKeys& keys;
  const Layer<T>& layer;
  const uint32_t* from;
  uint32_t* to;
  uint32_t step;
  bool to_visible;
  float* means;  // null, or rows of layer.outputs
  Range chains;
  Scratch scratch;
  bool listed = false;  // whether scratch has the lists of rows

  void run(int64_t block) {
    const int64_t count = chains.last - chains.first, tiles = divide_up(count, kTileChains);
    if (!to_visible && task.v_real) return from_real(block);
    if (count <= kDirectChains) return directly(block);
    for (int64_t i = 0; i < tiles; ++i) {
      const Range tile = part(count, i, tiles);
      through_tables(block, chains.first + tile.first, chains.first + tile.last);
    }
  }

  void directly(int64_t block) {
    const int64_t most = layer.input_words() * kGroups + kAhead;
    for (int64_t c = 0; c < chains.last - chains.first; ++c) {
      GroupRows* list = scratch.list + c * most;
      if (!listed)
        scratch.list_length[c] = list_groups(from + chains.first + c, task.chains, layer.input_words(),
                                             static_cast<uint32_t>(layer.rows() - 1), list);
      Sums sums = load_sums(layer.bias + block * kWidth);
      add_rows(sums, list, scratch.list_length[c], layer.block(block));
      finish(sums, chains.first + c, block);
    }
    listed = true;
  }

  void through_tables(int64_t block, int64_t first, int64_t last) const {
    for (int64_t w = 0; w < layer.input_words(); ++w) {
      const T* rows = layer.block(block) + 32 * w * kWidth;
      build_tables(rows, scratch.table);
      add_word(from + w * task.chains + first, last - first, scratch.table,
               w == 0 ? layer.bias + block * kWidth : nullptr, scratch.sums,
               reinterpret_cast<const char*>(rows + 32 * kWidth), 32 * kWidth * sizeof(T));
    }
    draw_tile(block, first, last);
  }

  __attribute__((noinline)) void draw_tile(int64_t block, int64_t first, int64_t last) const {
    for (int64_t c = first; c < last; ++c) finish(load_sums(scratch.sums + (c - first) * kWidth), c, block);
  }

  // Real inputs are added one by one: sum + value * weight, each operation rounded.
  void from_real(int64_t block) const {
    for (int64_t c = chains.first; c < chains.last; ++c) {
      Sums sums = load_sums(layer.bias + block * kWidth);
      const float* row = task.v_real + c * layer.inputs;
      const T* weights = layer.block(block);
      for (int64_t i = 0; i < layer.inputs; ++i, weights += kWidth)
        for (int k = 0; k < kVectors; ++k) sums.v[k] += load_weights(weights, k) * row[i];
      finish(sums, c, block);
    }
  }

  FASTGEN_MEMBER void finish(const Sums& sums, int64_t chain, int64_t block) const {
    const int64_t first = block * kWidth, count = smaller(kWidth, layer.outputs - first);
    float* mean = means ? means + chain * layer.outputs + first : nullptr;
    const StreamVectors draws(keys, Stream(task.seed, task.sample_ids[chain], step,
                                           to_visible && task.v_real ? task.noise_stream : task.draw_stream));
    const uint32_t* free = layer.free + (layer.free_stride ? block * kWordsOfBlock * layer.free_stride + chain
                                                           : block * kWordsOfBlock);
    const int64_t free_step = layer.free_stride ? layer.free_stride : 1;
    if (to_visible && task.v_real) {
      uint64_t mask = 0;
      for (int i = 0; i < kWordsOfBlock; ++i) mask |= static_cast<uint64_t>(free[i * free_step]) << (32 * i);
      if (mean) unpack_outputs(sums, count, mean);
      return draw_gaussian(sums, task.beta[chain], draws, first, count, mask,
                           task.v_real + chain * layer.outputs + first);
    }
    uint64_t bits = draw_binary(sums, task.beta[chain], draws, first, count, mean);
    for (int i = 0; i < kWordsOfBlock; ++i, bits >>= 32) {
      uint32_t& word = to[(block * kWordsOfBlock + i) * task.chains + chain];
      const uint32_t mask = free[i * free_step];
      word = (static_cast<uint32_t>(bits) & mask) | (word & ~mask);
    }
  }
};

template <class T>
struct Sampler {
  const RbmGibbs& task;
  const RbmPlan& plan;
  const Progress& progress;
  const Workspace<T>& space;
  const RoundKeys& keys;

  // All that `worker` does; its share of the units is where it starts to look for work.
  bool run(int64_t worker) const {
    pack(worker);
    if (__atomic_load_n(progress.wrong, __ATOMIC_RELAXED)) return false;
    uint64_t total = 0;
    for (int64_t k = 0; k < task.half_steps; ++k) half_step(k, worker, total);
    unpack(worker);
    return true;
  }

  // The items are the blocks of both layers, groups of chains, and the masks that all chains share.
  void pack(int64_t worker) const {
    const int64_t hidden = space.to_hidden.blocks(), both = hidden + space.to_visible.blocks();
    const int64_t items = both + divide_up(task.chains, kPackedChains) + 1;
    const auto work = [&](int64_t item) { item < both ? pack_weights(item) : pack_rest(item - both); };
    run_round(progress.pack_claims, *progress.packed, 1, items, items * worker / (plan.teams * plan.members),
              static_cast<uint64_t>(items), work);
  }

  void pack_weights(int64_t item) const {
    const T* weight = static_cast<const T*>(task.weight);
    const int64_t hidden = space.to_hidden.blocks();
    const bool to_visible = item >= hidden;
    if (task.half_steps == 0 || (task.half_steps == 1 && to_visible != (task.first_step % 2 == 1))) return;
    if (to_visible)
      pack_block(space.to_visible, item - hidden, weight, task.hidden_step, task.visible_step, task.v_bias);
    else
      pack_block(space.to_hidden, item, weight, task.visible_step, task.hidden_step, task.h_bias);
  }

  void pack_rest(int64_t item) const {
    if (item == 0) return pack_shared_masks();
    const int64_t first = (item - 1) * kPackedChains, last = smaller(first + kPackedChains, task.chains);
    for (int64_t c = first; c < last; ++c) pack_chain(c);
  }

  void pack_shared_masks() const {
    free_words(space.to_hidden, nullptr, space.to_hidden.free, 1);
    if (!space.to_visible.free_stride)
      free_words(space.to_visible, task.clamp_mask, space.to_visible.free, 1);
  }

  // Bits of the units that are there and not clamped.
  static void free_words(const Layer<T>& layer, const uint8_t* clamped, uint32_t* words, int64_t stride) {
    for (int64_t w = 0; w < layer.output_words(); ++w) words[w * stride] = 0;
    for (int64_t i = 0; i < layer.outputs; ++i)
      words[i / 32 * stride] |= static_cast<uint32_t>(!(clamped && clamped[i])) << (i % 32);
  }

  void pack_chain(int64_t c) const {
    if (!task.v_real) pack_states(task.v, c, task.visible, space.to_visible.output_words(), space.v + c);
    pack_states(task.h, c, task.hidden, space.to_hidden.output_words(), space.h + c);
    if (space.to_visible.free_stride)
      free_words(space.to_visible, task.clamp_mask + c * task.clamp_stride, space.to_visible.free + c,
                 task.chains);
  }

  void pack_states(const RbmStates& states, int64_t c, int64_t units, int64_t count, uint32_t* words) const {
    const bool valid = states.floats ? pack_bits(static_cast<const float*>(states.from) + c * units, units,
                                                 count, words, task.chains)
                                     : pack_bits(static_cast<const uint8_t*>(states.from) + c * units, units,
                                                 count, words, task.chains);
    if (!valid) __atomic_store_n(progress.wrong, 1u, __ATOMIC_RELAXED);
  }

  void unpack(int64_t worker) const {
    const Range team = part(task.chains, worker / plan.members, plan.teams);
    const Range mine = part(team.last - team.first, worker % plan.members, plan.members);
    for (int64_t c = team.first + mine.first; c < team.first + mine.last; ++c) {
      if (!task.v_real) unpack_states(space.v + c, task.visible, task.v, c);
      unpack_states(space.h + c, task.hidden, task.h, c);
    }
  }

  void unpack_states(const uint32_t* words, int64_t units, const RbmStates& states, int64_t c) const {
    if (states.floats)
      unpack_bits(words, task.chains, units, static_cast<float*>(states.to) + c * units);
    else
      unpack_bits(words, task.chains, units, static_cast<uint8_t*>(states.to) + c * units);
  }

  void half_step(int64_t k, int64_t worker, uint64_t& total) const {
    const uint32_t step = task.first_step + static_cast<uint32_t>(k);
    const bool last = k + 2 >= task.half_steps, to_visible = step % 2 == 1;
    const int64_t team = worker / plan.members;
    const Layer<T>& layer = to_visible ? space.to_visible : space.to_hidden;
    HalfStep<T> half{task,
                     keys,
                     layer,
                     to_visible ? space.h : space.v,
                     to_visible ? space.v : space.h,
                     step,
                     to_visible,
                     !last        ? nullptr
                     : to_visible ? task.v_mean
                                  : task.h_mean,
                     part(task.chains, team, plan.teams),
                     space.scratch(worker)};
    total += static_cast<uint64_t>(layer.blocks());
    run_round(progress.claims(team, to_visible), progress.teams[team], static_cast<uint64_t>(k) + 1,
              layer.blocks(), part(layer.blocks(), worker % plan.members, plan.members).first, total,
              [&](int64_t block) { half.run(block); });
  }
};

template <class T>
bool sample(const RbmGibbs& task, const RbmPlan& plan, void* workspace, int64_t first, int64_t last) {
  Carver carver{static_cast<char*>(workspace)};
  const Progress progress(task, plan.teams, carver);
  const Workspace<T> space(task, carver);
  const RoundKeys keys(task.seed);
  const Sampler<T> sampler{task, plan, progress, space, keys};
  bool valid = true;
  for (int64_t worker = first; worker < last; ++worker) valid &= sampler.run(worker);
  return valid;
}

template <class T>
void measure(const RbmGibbs& task, RbmPlan& plan) {
  Carver carver{nullptr};
  const Progress progress(task, plan.teams, carver);
  plan.progress_bytes = carver.used;
  const Workspace<T> space(task, carver);
  plan.workspace_bytes = carver.used + (plan.teams * plan.members - 1) * space.scratch_bytes;
}

}  // namespace

RbmPlan rbm_plan(const RbmGibbs& task, int64_t threads) {
  // A thread is worth waking for some 2^16 weights a half step.
  threads = smaller(threads, divide_up(task.chains * task.visible * task.hidden, 1 << 16));
  int64_t teams = smaller(threads, task.chains / kTeamChains > 1 ? task.chains / kTeamChains : 1);
  while (threads % teams != 0) --teams;
  RbmPlan plan{teams, threads / teams, 0, 0};
  task.bfloat16 ? measure<uint16_t>(task, plan) : measure<float>(task, plan);
  return plan;
}

bool rbm_gibbs(const RbmGibbs& task, const RbmPlan& plan, void* workspace, int64_t first, int64_t last) {
  return task.bfloat16 ? sample<uint16_t>(task, plan, workspace, first, last)
                       : sample<float>(task, plan, workspace, first, last);
}

}  // namespace fastgen::FASTGEN_ISA
