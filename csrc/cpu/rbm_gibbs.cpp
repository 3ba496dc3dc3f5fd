#include "rbm_gibbs.h"

#include <sched.h>

#include "rbm_draw.h"

namespace fastgen::FASTGEN_ISA {
namespace {

constexpr int64_t kTileChains = 512;   // chains that share tables; their sums stay in the second cache
constexpr int64_t kDirectChains = 10;  // up to here reading rows is cheaper than building tables
constexpr int64_t kChainsOfMember =
    256;  // below this, threads rather split the units than build tables twice

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

// A share of the work of one half step.
struct Share {
  int64_t first_chain, last_chain, first_block, last_block;
};

// One half step: `layer` from the states `from` (or the real rows) to the words `to` (or the real rows).
template <class T>
struct HalfStep {
  const RbmGibbs& task;
  const Layer<T>& layer;
  const uint32_t* from;
  uint32_t* to;
  uint32_t step;
  bool to_visible;
  float* means;  // null, or rows of layer.outputs
  RoundKeys keys{static_cast<uint64_t>(task.seed)};

  void run(const Share& share, const Scratch& scratch) const {
    if (!to_visible && task.v_real) return from_real(share);
    if (share.last_chain - share.first_chain <= kDirectChains) return directly(share, scratch);
    const int64_t chains = share.last_chain - share.first_chain, tiles = divide_up(chains, kTileChains);
    for (int64_t block = share.first_block; block < share.last_block; ++block)
      for (int64_t i = 0; i < tiles; ++i)
        through_tables(block, share.first_chain + chains * i / tiles,
                       share.first_chain + chains * (i + 1) / tiles, scratch);
  }

  void directly(const Share& share, const Scratch& scratch) const {
    const int64_t most = layer.input_words() * kGroups + kAhead,
                  chains = share.last_chain - share.first_chain;
    for (int64_t c = 0; c < chains; ++c)
      scratch.list_length[c] = list_groups(from + share.first_chain + c, task.chains, layer.input_words(),
                                           static_cast<uint32_t>(layer.rows() - 1), scratch.list + c * most);
    for (int64_t block = share.first_block; block < share.last_block; ++block)
      for (int64_t c = 0; c < chains; ++c) {
        Sums sums = load_sums(layer.bias + block * kWidth);
        add_rows(sums, scratch.list + c * most, scratch.list_length[c], layer.block(block));
        finish(sums, share.first_chain + c, block);
      }
  }

  void through_tables(int64_t block, int64_t first, int64_t last, const Scratch& scratch) const {
    for (int64_t w = 0; w < layer.input_words(); ++w) {
      const T* rows = layer.block(block) + 32 * w * kWidth;
      build_tables(rows, scratch.table);
      add_word(from + w * task.chains + first, last - first, scratch.table,
               w == 0 ? layer.bias + block * kWidth : nullptr, scratch.sums,
               reinterpret_cast<const char*>(rows + 32 * kWidth), 32 * kWidth * sizeof(T));
    }
    draw_tile(block, first, last, scratch);
  }

  __attribute__((noinline)) void draw_tile(int64_t block, int64_t first, int64_t last,
                                           const Scratch& scratch) const {
    for (int64_t c = first; c < last; ++c) finish(load_sums(scratch.sums + (c - first) * kWidth), c, block);
  }

  // Real inputs are added one by one: sum + value * weight, each operation rounded.
  void from_real(const Share& share) const {
    for (int64_t block = share.first_block; block < share.last_block; ++block)
      for (int64_t c = share.first_chain; c < share.last_chain; ++c) {
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

// Tells the core that this thread only waits.
FASTGEN_INLINE void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

struct Range {
  int64_t first, last;
};

FASTGEN_INLINE Range part(int64_t count, int64_t index, int64_t parts) {
  return {count * index / parts, count * (index + 1) / parts};
}

template <class T>
struct Sampler {
  const RbmGibbs& task;
  const RbmPlan& plan;
  Workspace<T> space;

  // Everybody packs a part of the weights and of the chains.
  void pack(int64_t worker) const {
    const int64_t workers = plan.teams * plan.members;
    const T* weight = static_cast<const T*>(task.weight);
    const bool even = task.first_step % 2 == 0;
    if (even || task.half_steps > 1) {
      const Range mine = part(space.to_hidden.blocks(), worker, workers);
      for (int64_t b = mine.first; b < mine.last; ++b)
        pack_block(space.to_hidden, b, weight, task.hidden, 1, task.h_bias);
    }
    if (!even || task.half_steps > 1) {
      const Range mine = part(space.to_visible.blocks(), worker, workers);
      for (int64_t b = mine.first; b < mine.last; ++b)
        pack_block(space.to_visible, b, weight, 1, task.hidden, task.v_bias);
    }
    if (worker == 0) pack_shared_masks();
    const Range chains = part(task.chains, worker, workers);
    for (int64_t c = chains.first; c < chains.last; ++c) pack_chain(c);
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
      pack_bits(task.v + c * task.visible, task.visible, space.to_visible.output_words(), space.v + c,
                task.chains);
    pack_bits(task.h + c * task.hidden, task.hidden, space.to_hidden.output_words(), space.h + c,
              task.chains);
    if (space.to_visible.free_stride)
      free_words(space.to_visible, task.clamp_mask + c * task.clamp_stride, space.to_visible.free + c,
                 task.chains);
  }

  void unpack(int64_t worker) const {
    const Range team = part(task.chains, worker / plan.members, plan.teams);
    const Range mine = part(team.last - team.first, worker % plan.members, plan.members);
    for (int64_t c = team.first + mine.first; c < team.first + mine.last; ++c) {
      if (!task.v_real) unpack_bits(space.v + c, task.chains, task.visible, task.v + c * task.visible);
      unpack_bits(space.h + c, task.chains, task.hidden, task.h + c * task.hidden);
    }
  }

  void half_step(int64_t k, int64_t worker) const {
    const uint32_t step = task.first_step + static_cast<uint32_t>(k);
    const bool last = k + 2 >= task.half_steps, to_visible = step % 2 == 1;
    const Layer<T>& layer = to_visible ? space.to_visible : space.to_hidden;
    const Range chains = part(task.chains, worker / plan.members, plan.teams);
    const Range blocks = part(layer.blocks(), worker % plan.members, plan.members);
    float* means = !last ? nullptr : to_visible ? task.v_mean : task.h_mean;
    const HalfStep<T> half{
        task, layer, to_visible ? space.h : space.v, to_visible ? space.v : space.h, step, to_visible, means};
    half.run({chains.first, chains.last, blocks.first, blocks.last}, space.scratch(worker));
  }
};

// The last to arrive opens the barrier. Half steps are short, so the others spin, and give way if it takes
// long.
void meet(RbmBarrier& barrier, int64_t workers, int64_t all) {
  if (workers == all) return;
  const uint32_t round = __atomic_load_n(&barrier.round, __ATOMIC_ACQUIRE);
  if (__atomic_add_fetch(&barrier.arrived, static_cast<uint32_t>(workers), __ATOMIC_ACQ_REL) == all) {
    __atomic_store_n(&barrier.arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&barrier.round, round + 1, __ATOMIC_RELEASE);
    return;
  }
  constexpr int kSpins = 1 << 14;
  for (int spins = 0; __atomic_load_n(&barrier.round, __ATOMIC_ACQUIRE) == round; ++spins) {
    if (spins < kSpins)
      relax();
    else
      sched_yield();
  }
}

// Teams in ascending order, so that callers whose workers belong to several teams never wait in a circle.
void meet_teams(const RbmPlan& plan, RbmBarrier* barriers, int64_t first, int64_t last) {
  for (int64_t team = first / plan.members; team * plan.members < last; ++team) {
    const int64_t begin = team * plan.members, end = begin + plan.members;
    meet(barriers[team], smaller(end, last) - (begin > first ? begin : first), plan.members);
  }
}

template <class T>
void sample(const RbmGibbs& task, const RbmPlan& plan, void* workspace, RbmBarrier* barriers, int64_t first,
            int64_t last) {
  Carver carver{static_cast<char*>(workspace)};
  const Sampler<T> sampler{task, plan, Workspace<T>(task, carver)};
  for (int64_t w = first; w < last; ++w) sampler.pack(w);
  meet(barriers[plan.teams], last - first, plan.teams * plan.members);
  for (int64_t k = 0; k < task.half_steps; ++k) {
    for (int64_t w = first; w < last; ++w) sampler.half_step(k, w);
    meet_teams(plan, barriers, first, last);
  }
  for (int64_t w = first; w < last; ++w) sampler.unpack(w);
}

template <class T>
int64_t workspace_bytes(const RbmGibbs& task, int64_t workers) {
  Carver carver{nullptr};
  const Workspace<T> space(task, carver);
  return carver.used + (workers - 1) * space.scratch_bytes;
}

}  // namespace

RbmPlan rbm_plan(const RbmGibbs& task, int64_t threads) {
  // A thread is worth waking for some 2^16 weights a half step.
  const int64_t useful = divide_up(task.chains * task.visible * task.hidden, 1 << 16);
  threads = smaller(threads, useful);
  int64_t teams = smaller(threads, task.chains / kChainsOfMember > 1 ? task.chains / kChainsOfMember : 1);
  while (threads % teams != 0) --teams;
  RbmPlan plan{teams, threads / teams, 0};
  plan.workspace_bytes =
      task.bfloat16 ? workspace_bytes<uint16_t>(task, threads) : workspace_bytes<float>(task, threads);
  return plan;
}

void rbm_gibbs(const RbmGibbs& task, const RbmPlan& plan, void* workspace, RbmBarrier* barriers,
               int64_t first, int64_t last) {
  if (task.bfloat16)
    sample<uint16_t>(task, plan, workspace, barriers, first, last);
  else
    sample<float>(task, plan, workspace, barriers, first, last);
}

}  // namespace fastgen::FASTGEN_ISA
