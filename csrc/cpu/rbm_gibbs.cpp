#include "rbm_gibbs.h"

#include "rbm_draw.h"
#include "rbm_pack.h"
#include "rbm_workspace.h"

namespace fastgen::FASTGEN_ISA {
namespace {

constexpr int64_t kTeamChains = 256;  // with fewer a thread, threads split the units: tables are built once

// One half step of some chains: `layer` from the states `from` (or the real rows) to the words `to` (or the
// real rows).
template <class T>
struct HalfStep {
  const RbmGibbs& task;
  const RoundKeys& keys;
  const Layer<T>& layer;
  const States &from, &to;
  uint32_t step;
  bool to_visible;
  float* means;  // null, or rows of layer.outputs
  Range chains;
  int64_t team;
  Scratch scratch;
  bool listed = false;  // whether scratch has the lists of rows

  void run(int64_t block) {
    const bool few = task.chains <= kDirectChains;
    const Tiles& tiles = from.tiles;
    const int64_t first_tile = team * tiles.of_team;
    if (!to_visible && task.v_real)
      from_real(block);
    else if (few)
      directly(block);
    else
      for (int64_t i = 0; i < tiles.of_team; ++i) through_tables(block, tiles[first_tile + i]);
    if (few || (to_visible && task.v_real)) return;
    for (int64_t i = 0; i < tiles.of_team; ++i)
      for (int64_t w = 0; w < kWordsOfBlock; ++w) to.list(block * kWordsOfBlock + w, tiles[first_tile + i]);
  }

  void directly(int64_t block) {
    const int64_t most = layer.input_words() * kGroups + kAhead;
    for (int64_t c = 0; c < chains.last - chains.first; ++c) {
      GroupRows* list = scratch.list + c * most;
      if (!listed)
        scratch.list_length[c] = list_groups(from.words + chains.first + c, task.chains, layer.input_words(),
                                             static_cast<uint32_t>(layer.rows() - 1), list);
      Sums sums = load_sums(layer.bias + block * kWidth);
      add_rows(sums, list, scratch.list_length[c], layer.block(block));
      finish(sums, chains.first + c, block);
    }
    listed = true;
  }

  void through_tables(int64_t block, const Tile& tile) const {
    if (layer.outputs - block * kWidth <= kNarrowOutputs)
      add_words<Narrow>(block, tile);
    else
      add_words<F32>(block, tile);
    draw_tile(block, tile);
  }

  template <class V>
  void add_words(int64_t block, const Tile& tile) const {
    for (int64_t w = 0; w < layer.input_words(); ++w) {
      const T* rows = layer.block(block) + 32 * w * kWidth;
      build_tables<V>(rows, scratch.table);
      add_word<V>(from.lists(w, tile), scratch.table, w == 0 ? layer.bias + block * kWidth : nullptr,
                  scratch.sums, Fetching(rows + 32 * kWidth, 32 * kWidth * sizeof(T), tile.count()));
    }
  }

  __attribute__((noinline)) void draw_tile(int64_t block, const Tile& tile) const {
    for (int64_t c = tile.first; c < tile.last; ++c)
      finish(load_sums(scratch.sums + (c - tile.first) * kWidth), c, block);
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
      uint32_t& word = to.words[(block * kWordsOfBlock + i) * task.chains + chain];
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
    list_start(worker);
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

  // Lists the states that the first half step starts from; later ones are listed as they are drawn.
  void list_start(int64_t worker) const {
    const bool to_visible = task.first_step % 2 == 1;
    if (task.half_steps == 0 || task.chains <= kDirectChains || (!to_visible && task.v_real)) return;
    const States& states = to_visible ? space.h : space.v;
    const int64_t words = (to_visible ? space.to_visible : space.to_hidden).input_words();
    const auto work = [&](int64_t word) {
      for (int64_t i = 0; i < states.tiles.count(); ++i) states.list(word, states.tiles[i]);
    };
    run_round(progress.list_claims, *progress.listed, 1, words, words * worker / (plan.teams * plan.members),
              static_cast<uint64_t>(words), work);
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
    if (!task.v_real)
      pack_states(task.v, c, task.visible, space.to_visible.output_words(), space.v.words + c);
    pack_states(task.h, c, task.hidden, space.to_hidden.output_words(), space.h.words + c);
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
      if (!task.v_real) unpack_states(space.v.words + c, task.visible, task.v, c);
      unpack_states(space.h.words + c, task.hidden, task.h, c);
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
                     team,
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
  const Workspace<T> space(task, plan, carver);
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
  const Workspace<T> space(task, plan, carver);
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
