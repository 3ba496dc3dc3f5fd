// Divides the work of decode_attention into units. For those who call the kernels, not for the kernels, which
// are compiled for several instruction sets and take no template of the standard library from a header.
#pragma once
#include <algorithm>
#include <vector>

#include "decode_attention.h"

namespace fastgen {

// The plan and the memory it points to.
class DecodeWork {
 public:
  // Of the task, the shapes, lengths and the window; pointers to q and the cache are not looked at.
  explicit DecodeWork(const DecodeAttention& task) {
    sequences_.reserve(task.sequences + 1);
    for (int64_t s = 0; s < task.sequences; ++s) add(task, s);
    DecodeSequence end{};
    end.first_unit = plan_.units, end.first_merge = plan_.merges, end.scratch = plan_.scratch;
    sequences_.push_back(end);
    plan_.sequences = sequences_.data();
  }
  DecodeWork(const DecodeWork&) = delete;
  const DecodePlan& plan() const { return plan_; }

 private:
  static constexpr int64_t kTileRows = 96;  // rows (positions by heads of a group) that share a block of keys

  void add(const DecodeAttention& task, int64_t s) {
    const int64_t group = task.query_heads / task.key_heads, length = task.lengths[s];
    const int64_t positions = task.query_starts[s + 1] - task.query_starts[s];
    DecodeSequence found{plan_.units, plan_.merges, plan_.scratch, 0, 0, 0, 0, false};
    found.tile_positions = std::max<int64_t>(1, kTileRows / group);
    found.tiles = (positions + found.tile_positions - 1) / found.tile_positions;
    const int64_t unseen = task.window ? std::max<int64_t>(0, length - positions + 1 - task.window) : 0;
    found.first_split = unseen / kKeySplit;
    found.splits = (length + kKeySplit - 1) / kKeySplit - found.first_split;
    found.apart = found.tiles == 1 && found.splits > 1;
    plan_.units += task.key_heads * (found.apart ? found.splits : found.tiles);
    plan_.merges += found.apart ? task.key_heads : 0;
    const int64_t rows = group * std::min(positions, found.tile_positions);
    plan_.workspace = std::max(plan_.workspace, workspace_floats(rows, task.size));
    if (found.apart) plan_.scratch += task.query_heads * positions * found.splits * part_floats(task.size);
    sequences_.push_back(found);
  }

  std::vector<DecodeSequence> sequences_;
  DecodePlan plan_{};
};

}  // namespace fastgen
