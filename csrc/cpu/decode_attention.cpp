#include "decode_attention.h"

#include <cstdlib>

#include "decode_tile.h"

namespace fastgen::FASTGEN_ISA {
namespace {

FASTGEN_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// What a unit works in, in one piece of memory.
class Workspace {
 public:
  explicit Workspace(int64_t floats)
      : memory_(static_cast<float*>(std::aligned_alloc(64, (floats * 4 + 63) / 64 * 64))), next_(memory_) {}
  ~Workspace() { std::free(memory_); }
  Workspace(const Workspace&) = delete;
  float* take(int64_t floats) {
    float* const taken = next_;
    next_ += (floats + 15) / 16 * 16;
    return taken;
  }

 private:
  float *memory_, *next_;
};

// largest, sum and values of a part are merged into those of a row.
FASTGEN_INLINE void merge_part(const float* part, int64_t size, float* total) {
  if (part[1] == 0) return;  // saw nothing
  if (total[1] == 0) {
    memcpy(total, part, part_floats(size) * sizeof *total);
    return;
  }
  const float top = part[0] > total[0] ? part[0] : total[0], reference = top == kNone ? 0 : top;
  const F32 old_factor = power_of_negative(broadcast(total[0] - reference));
  const F32 new_factor = power_of_negative(broadcast(part[0] - reference));
  total[0] = top;
  total[1] = multiply_add(broadcast(total[1]), old_factor, broadcast(part[1]) * new_factor)[0];
  for (int64_t d = 16; d < 16 + size; d += kLanes32)
    store(total + d, multiply_add(load<F32>(total + d), old_factor, load<F32>(part + d) * new_factor));
}

FASTGEN_INLINE void write_row(const DecodeAttention& task, const float* total, int64_t row, int64_t head) {
  float* out = task.out + row * task.out_stride + head * task.size;
  float* lse = task.lse ? task.lse + row * task.query_heads + head : nullptr;
  if (total[1] == 0) {  // saw nothing
    memset(out, 0, task.size * sizeof *out);
    if (lse) *lse = kNone;
    return;
  }
  const F32 inverse = broadcast(1 / total[1]);
  for (int64_t d = 0; d < task.size; d += kLanes32)
    Stored<float>::store(out + d, load<F32>(total + 16 + d) * inverse,
                         static_cast<int>(smaller(task.size - d, kLanes32)));
  if (lse) *lse = total[0] * kLogOf2 + log(broadcast(total[1]))[0];
}

// A tile of rows (positions by heads of a group, a group's heads side by side) against a cache of S.
template <class S>
class Tile {
 public:
  Tile(const DecodeAttention& task, const DecodeSequence& how, int64_t sequence, int64_t head, int64_t tile)
      : task_(task),
        sequence_(sequence),
        head_(head),
        group_(task.query_heads / task.key_heads),
        padded_(padded_size(task.size)),
        part_(part_floats(task.size)),
        first_row_(task.query_starts[sequence] + tile * how.tile_positions),
        count_(group_ * smaller(how.tile_positions, task.query_starts[sequence + 1] - first_row_)),
        memory_(2 * kKeys * padded_ + kTileRows * kKeys +
                count_ * (2 * padded_ + 2 * part_ + 16 + 1 + 2 * 2) + 10 * 16) {
    packed_ = memory_.take(kKeys * padded_), copied_ = memory_.take(kKeys * padded_);
    weights_ = reinterpret_cast<float (*)[kKeys]>(memory_.take(kTileRows * kKeys));
    sums_ = reinterpret_cast<float (*)[16]>(memory_.take(count_ * 16));
    largest_ = memory_.take(count_), acc_ = memory_.take(count_ * padded_),
    q_ = memory_.take(count_ * padded_);
    total_ = memory_.take(count_ * part_), parts_ = memory_.take(count_ * part_);
    begin_ = reinterpret_cast<int64_t*>(memory_.take(count_ * 2));
    end_ = reinterpret_cast<int64_t*>(memory_.take(count_ * 2));
    const int64_t first_position = task.lengths[sequence] - task.query_starts[sequence + 1] + first_row_;
    const float scale =
        task.softcap > 0 ? task.scale / task.softcap : task.scale * kLog2OfE;  // as weigh() wants
    for (int64_t r = 0; r < count_; ++r) {
      copy_rows(task.q + row(r) * task.q_stride + head_of(r) * task.size, 0, 1, task.size, padded_,
                q_ + r * padded_);
      for (int64_t d = 0; d < padded_; ++d) q_[r * padded_ + d] *= scale;
      end_[r] = larger(0, first_position + r / group_ + 1);
      begin_[r] = task.window ? larger(0, end_[r] - task.window) : 0;
      total_[r * part_ + 1] = 0;
    }
  }

  int64_t rows() const { return count_; }

  // The part of each row that comes from one split.
  void attend(int64_t split, float* parts) {
    for (int64_t r = 0; r < count_; ++r) largest_[r] = kNone;
    memset(sums_, 0, count_ * sizeof *sums_);
    memset(acc_, 0, count_ * padded_ * sizeof *acc_);
    const int64_t first = larger(split * kKeySplit, begin_[0]) / kKeys * kKeys;
    const int64_t last = smaller((split + 1) * kKeySplit, end_[count_ - 1]);
    for (int64_t key = first; key < last; key += kKeys) block(key, smaller(last - key, kKeys));
    for (int64_t r = 0; r < count_; ++r) {
      float* sum = sums_[r];
      for (int n = 8; n > 0; n /= 2)
        for (int i = 0; i < n; ++i) sum[i] += sum[i + n];
      parts[r * part_] = largest_[r], parts[r * part_ + 1] = sum[0];
      memcpy(parts + r * part_ + 16, acc_ + r * padded_, padded_ * sizeof *acc_);
    }
  }

  // All splits, and the result.
  void attend_all() {
    const int64_t first = begin_[0] / kKeySplit, last = (end_[count_ - 1] + kKeySplit - 1) / kKeySplit;
    for (int64_t split = first; split < last; ++split) {
      attend(split, parts_);
      for (int64_t r = 0; r < count_; ++r) merge_part(parts_ + r * part_, task_.size, total_ + r * part_);
    }
    for (int64_t r = 0; r < count_; ++r) write_row(task_, total_ + r * part_, row(r), head_of(r));
  }

 private:
  int64_t row(int64_t r) const { return first_row_ + r / group_; }
  int64_t head_of(int64_t r) const { return head_ * group_ + r % group_; }

  const S* place(const KeyCache& cache, int64_t key) const {
    const int64_t page =
        task_.block_table ? task_.block_table[sequence_ * task_.table_stride + key / task_.page] : sequence_;
    const int64_t inside = task_.block_table ? key % task_.page : key;
    return static_cast<const S*>(cache.data) + page * cache.page_stride + head_ * cache.head_stride +
           inside * cache.key_stride;
  }

  // Keys key .. key + count - 1, the first being that of a block.
  void block(int64_t key, int64_t count) {
    const int64_t next = key + kKeys < end_[count_ - 1] ? key + kKeys : key;
    const bool whole = task_.size % kLanes32 == 0, few = count_ <= kDirectRows;
    const S *keys = place(task_.keys, key), *values = place(task_.values, key);
    count_keys_ = count, direct_ = whole && few && count == kKeys;
    in_place_ = {keys, place(task_.keys, next), task_.keys.key_stride};
    if (!direct_) pack_keys(keys, task_.keys.key_stride, count, task_.size, padded_, packed_);
    if (whole && (few || sizeof(S) == 4)) {
      rows_of_tile(key, Values<S>{values, place(task_.values, next), task_.values.key_stride});
    } else {
      copy_rows(values, task_.values.key_stride, count, task_.size, padded_, copied_);
      rows_of_tile(key, Values<float>{copied_, copied_, padded_});
    }
  }

  template <class V>
  void rows_of_tile(int64_t key, const Values<V>& values) {
    const int64_t groups = (count_ + kTileRows - 1) / kTileRows;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = g * count_ / groups, last = (g + 1) * count_ / groups;
      some_rows<kTileRows>(last - first, first, key, values);
    }
  }

  template <int R, class V>
  void some_rows(int64_t count, int64_t first, int64_t key, const Values<V>& values) {
    if constexpr (R > 1)
      if (count < R) return some_rows<R - 1>(count, first, key, values);
    rows_together<R>(first, key, values);
  }

  // R rows from `first` on against the block at hand.
  template <int R, class V>
  void rows_together(int64_t first, int64_t key, const Values<V>& values) {
    int from[R], to[R], all_from = 0, all_to = kKeys, seen = 0;
    for (int r = 0; r < R; ++r) {
      from[r] = static_cast<int>(smaller(larger(begin_[first + r] - key, 0), kKeys));
      to[r] = static_cast<int>(smaller(larger(end_[first + r] - key, 0), kKeys));
      all_from = from[r] > all_from ? from[r] : all_from, all_to = to[r] < all_to ? to[r] : all_to;
      seen += from[r] < to[r];
    }
    if (seen == 0) return;
    score_keys<R>(first);
    float factor[R], *acc = acc_ + first * padded_;
    for (int r = 0; r < R; ++r)
      factor[r] = from[r] < to[r] ? weigh(weights_[r], from[r], to[r], task_.softcap, largest_[first + r],
                                          sums_[first + r])
                                  : 1.0f;
    const auto mix_row = [&](int r, int begin, int end) {
      if (begin >= end) return;
      mix<1>(weights_ + r, begin, end, values, task_.size, factor + r, acc + r * padded_, padded_);
      factor[r] = 1;
    };
    if (all_from >= all_to) {
      for (int r = 0; r < R; ++r) mix_row(r, from[r], to[r]);
      return;
    }
    for (int r = 0; r < R; ++r) mix_row(r, from[r], all_from);
    mix<R>(weights_, all_from, all_to, values, task_.size, factor, acc, padded_);
    for (int r = 0; r < R; ++r) factor[r] = 1, mix_row(r, all_to, to[r]);
  }

  template <int R>
  void score_keys(int64_t first) {
    const float* q = q_ + first * padded_;
    for (int64_t k = 0; k < count_keys_; k += kLanes32)
      if (R <= kDirectRows && direct_)
        score<R>(q, padded_, task_.size, in_place_, k, weights_);
      else
        score<R>(q, padded_, task_.size, PackedKeys{packed_, padded_}, k, weights_);
  }

  const DecodeAttention& task_;
  int64_t sequence_, head_, group_, padded_, part_, first_row_, count_;
  Workspace memory_;
  float *packed_, *copied_, *q_, (*weights_)[kKeys], (*sums_)[16], *largest_, *acc_, *total_, *parts_;
  int64_t *begin_, *end_;    // the keys that each row sees
  KeysInPlace<S> in_place_;  // those of the block at hand
  int64_t count_keys_;
  bool direct_;
};

// Tiles in an order in which halves of it cost the same: the first, the last, the second, ...
FASTGEN_INLINE int64_t folded(int64_t i, int64_t tiles) { return i % 2 ? tiles - 1 - i / 2 : i / 2; }

template <class S>
void units(const DecodeAttention& task, const DecodePlan& plan, float* scratch, int64_t first, int64_t last) {
  int64_t s = 0;
  for (int64_t unit = first; unit < last; ++unit) {
    while (plan.sequences[s + 1].first_unit <= unit) ++s;
    const DecodeSequence& how = plan.sequences[s];
    const int64_t i = unit - how.first_unit;
    if (how.apart) {
      Tile<S> tile(task, how, s, i / how.splits, 0);
      tile.attend(how.first_split + i % how.splits,
                  scratch + how.scratch + i * tile.rows() * part_floats(task.size));
    } else {
      Tile<S>(task, how, s, i % task.key_heads, folded(i / task.key_heads, how.tiles)).attend_all();
    }
  }
}

}  // namespace

void decode_attention(const DecodeAttention& task, const DecodePlan& plan, float* scratch, int64_t first,
                      int64_t last) {
  task.bfloat16 ? units<Bfloat16>(task, plan, scratch, first, last)
                : units<float>(task, plan, scratch, first, last);
}

void decode_attention_merge(const DecodeAttention& task, const DecodePlan& plan, const float* scratch,
                            int64_t first, int64_t last) {
  const int64_t part = part_floats(task.size), group = task.query_heads / task.key_heads;
  Workspace memory(part);
  float* const total = memory.take(part);
  int64_t s = 0;
  for (int64_t merge = first; merge < last; ++merge) {
    while (plan.sequences[s + 1].first_merge <= merge) ++s;
    const DecodeSequence& how = plan.sequences[s];
    const int64_t head = merge - how.first_merge, first_row = task.query_starts[s];
    const int64_t rows = group * (task.query_starts[s + 1] - first_row);
    const float* parts = scratch + how.scratch + head * how.splits * rows * part;
    for (int64_t r = 0; r < rows; ++r) {
      total[1] = 0;
      for (int64_t split = 0; split < how.splits; ++split)
        merge_part(parts + (split * rows + r) * part, task.size, total);
      write_row(task, total, first_row + r / group, head * group + r % group);
    }
  }
}

}  // namespace fastgen::FASTGEN_ISA
