// What threads share while they sample an RBM: packed weights, states, tables and how far each has come.
#pragma once
#include "rbm_gibbs.h"
#include "rbm_product.h"
#include "rbm_rounds.h"

namespace fastgen::FASTGEN_ISA {

constexpr int64_t kDirectChains = 6;   // up to here reading rows is cheaper than building tables
constexpr int64_t kPackedChains = 32;  // an item of packing

struct Range {
  int64_t first, last;
};

FASTGEN_INLINE Range part(int64_t count, int64_t index, int64_t parts) {
  return {count * index / parts, count * (index + 1) / parts};
}

// Chains first to last - 1, which share tables.
struct Tile {
  int64_t first, last, index;

  FASTGEN_MEMBER int64_t count() const { return last - first; }
};

// The tiles of all teams.
struct Tiles {
  int64_t chains, teams, of_team;

  Tiles(const RbmGibbs& task, const RbmPlan& plan)
      : chains(task.chains),
        teams(plan.teams),
        of_team(divide_up(divide_up(task.chains, plan.teams), kTileChains)) {}

  int64_t count() const { return teams * of_team; }

  Tile operator[](int64_t index) const {
    const Range team = part(chains, index / of_team, teams);
    const Range tile = part(team.last - team.first, index % of_team, of_team);
    return {team.first + tile.first, team.first + tile.last, index};
  }
};

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
  RoundsDone *packed, *listed, *teams;  // one each, and one a team
  uint64_t *pack_claims, *list_claims, *block_claims;
  uint32_t* wrong;  // not 0 if a state is neither 0 nor 1
  int64_t blocks;   // of the larger layer

  Progress(const RbmGibbs& task, int64_t n_teams, Carver& carver)
      : blocks(divide_up(task.visible > task.hidden ? task.visible : task.hidden, kWidth)) {
    packed = carver.take<RoundsDone>(1);
    listed = carver.take<RoundsDone>(1);
    teams = carver.take<RoundsDone>(n_teams);
    pack_claims = carver.take<uint64_t>(2 * blocks + divide_up(task.chains, kPackedChains) + 1);
    list_claims = carver.take<uint64_t>(blocks * kWordsOfBlock);
    block_claims = carver.take<uint64_t>(2 * blocks * n_teams);
    wrong = carver.take<uint32_t>(1);
  }

  uint64_t* claims(int64_t team, bool to_visible) const {
    return block_claims + (2 * team + to_visible) * blocks;
  }
};

// The states of a layer: word w of chain c at w * chains + c, and what products list of them.
struct States {
  Tiles tiles;
  uint32_t* words;
  uint64_t* rows;
  uint32_t *order, *ends;

  States(int64_t n_words, const Tiles& of_chains, Carver& carver) : tiles(of_chains) {
    words = carver.take<uint32_t>(n_words * tiles.chains);
    rows = carver.take<uint64_t>(n_words * tiles.chains);
    order = carver.take<uint32_t>(n_words * tiles.chains);
    ends = carver.take<uint32_t>(n_words * tiles.count() * (kGroups + 1));
  }

  WordLists lists(int64_t word, const Tile& tile) const {
    const int64_t place = word * tiles.chains + tile.first;
    return {rows + place, order + place, ends + (word * tiles.count() + tile.index) * (kGroups + 1)};
  }

  void list(int64_t word, const Tile& tile) const {
    list_word(words + word * tiles.chains + tile.first, tile.count(), lists(word, tile));
  }
};

template <class T>
struct Workspace {
  Layer<T> to_hidden, to_visible;
  States v, h;
  Scratch first;
  int64_t scratch_bytes;

  Workspace(const RbmGibbs& task, const RbmPlan& plan, Carver& carver)
      : to_hidden(layer(task.visible, task.hidden, 0, carver)),
        to_visible(
            layer(task.hidden, task.visible, task.clamp_mask && task.clamp_stride ? task.chains : 0, carver)),
        v(to_visible.output_words(), Tiles(task, plan), carver),
        h(to_hidden.output_words(), Tiles(task, plan), carver) {
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

}  // namespace fastgen::FASTGEN_ISA
