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
  const F32 old_factor = exp_of_negative(broadcast(total[0] - reference));
  const F32 new_factor = exp_of_negative(broadcast(part[0] - reference));
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
  if (lse) *lse = total[0] + log(broadcast(total[1]))[0];
}

class Tile {
 public:
  Tile(const DecodeAttention& task, const DecodeSequence& how, int64_t sequence, int64_t head, int64_t tile)
      : task_(task),
        sequence_(sequence),
        head_(head),
        group_(task.query_heads / task.key_heads),
        padded_(padded_size(task.size)),
        first_row_(task.query_starts[sequence] + tile * how.tile_positions),
        count_(group_ * smaller(how.tile_positions, task.query_starts[sequence + 1] - first_row_)),
        memory_(task.size * kKeys + kKeys * padded_ + kTileRows * kKeys +
                count_ * (padded_ + 2 * part_floats(task.size) + 16 + 1 + 3 * 2) + 10 * 16) {
    columns_ = memory_.take(task.size * kKeys), copied_ = memory_.take(kKeys * padded_);
    weights_ = reinterpret_cast<float (*)[kKeys]>(memory_.take(kTileRows * kKeys));
    sums_ = reinterpret_cast<float (*)[16]>(memory_.take(count_ * 16));
    largest_ = memory_.take(count_), acc_ = memory_.take(count_ * padded_);
    total_ = memory_.take(count_ * part_floats(task.size)),
    parts_ = memory_.take(count_ * part_floats(task.size));
    q_ = reinterpret_cast<const float**>(memory_.take(count_ * 2));
    begin_ = reinterpret_cast<int64_t*>(memory_.take(count_ * 2));
    end_ = reinterpret_cast<int64_t*>(memory_.take(count_ * 2));
    const int64_t first_position = task.lengths[sequence] - task.query_starts[sequence + 1] + first_row_;
    for (int64_t r = 0; r < count_; ++r) {
      q_[r] = task.q + (first_row_ + r / group_) * task.q_stride + (head * group_ + r % group_) * task.size;
      end_[r] = larger(0, first_position + r / group_ + 1);
      begin_[r] = task.window ? larger(0, end_[r] - task.window) : 0;
      total_[r * part_floats(task.size) + 1] = 0;
    }
  }

  int64_t rows() const { return count_; }
  int64_t first_split() const { return begin_[0] / kKeySplit; }
  int64_t last_split() const { return (end_[count_ - 1] + kKeySplit - 1) / kKeySplit; }

  // The part of each row that comes from one split.
  void attend(int64_t split, float* parts) {
    const int64_t part = part_floats(task_.size);
    for (int64_t r = 0; r < count_; ++r) largest_[r] = kNone;
    memset(sums_, 0, count_ * sizeof *sums_);
    memset(acc_, 0, count_ * padded_ * sizeof *acc_);
    const int64_t first = larger(split * kKeySplit, begin_[0]);
    const int64_t last = smaller((split + 1) * kKeySplit, end_[count_ - 1]);
    for (int64_t key = first / kKeys * kKeys; key < last; key += kKeys)
      block(key, smaller(last - key, kKeys));
    for (int64_t r = 0; r < count_; ++r) {
      parts[r * part] = largest_[r];
      float* sum = sums_[r];
      for (int n = 8; n > 0; n /= 2)
        for (int i = 0; i < n; ++i) sum[i] += sum[i + n];
      parts[r * part + 1] = sum[0];
      memcpy(parts + r * part + 16, acc_ + r * padded_, padded_ * sizeof *acc_);
    }
  }

  // All splits, and the result.
  void attend_all() {
    const int64_t part = part_floats(task_.size);
    for (int64_t split = first_split(); split < last_split(); ++split) {
      attend(split, parts_);
      for (int64_t r = 0; r < count_; ++r) merge_part(parts_ + r * part, task_.size, total_ + r * part);
    }
    for (int64_t r = 0; r < count_; ++r)
      write_row(task_, total_ + r * part, first_row_ + r / group_, head_ * group_ + r % group_);
  }

 private:
  // Keys key .. key + count - 1, the first being that of a block.
  void block(int64_t key, int64_t count) {
    task_.bfloat16 ? block<Bfloat16>(key, count) : block<float>(key, count);
  }

  template <class S>
  void block(int64_t key, int64_t count) {
    const int64_t page =
        task_.block_table ? task_.block_table[sequence_ * task_.table_stride + key / task_.page] : sequence_;
    const int64_t inside = task_.block_table ? key % task_.page : key;
    const auto rows = [&](const KeyCache& cache) {
      return static_cast<const S*>(cache.data) + page * cache.page_stride + head_ * cache.head_stride +
             inside * cache.key_stride;
    };
    transpose_keys(rows(task_.keys), task_.keys.key_stride, count, task_.size, columns_);
    const float* values = copied_;
    int64_t stride = padded_;
    if (sizeof(S) == 4 && task_.size % kLanes32 == 0)
      values = reinterpret_cast<const float*>(rows(task_.values)), stride = task_.values.key_stride;
    else
      copy_values(rows(task_.values), task_.values.key_stride, count, task_.size, padded_, copied_);
    const int64_t groups = (count_ + kTileRows - 1) / kTileRows;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = g * count_ / groups, last = (g + 1) * count_ / groups;
      few_rows(last - first)(*this, first, key, values, stride);
    }
  }

  using FewRows = void (*)(Tile&, int64_t, int64_t, const float*, int64_t);
  static FewRows few_rows(int64_t count) {
    switch (count) {
      case 1:
        return rows_together<1>;
      case 2:
        return rows_together<2>;
      case 3:
        return rows_together<3>;
      case 4:
        return rows_together < kTileRows < 4 ? 1 : 4 > ;
      case 5:
        return rows_together < kTileRows < 5 ? 1 : 5 > ;
      default:
        return rows_together<kTileRows>;
    }
  }
  template <int R>
  static void rows_together(Tile& tile, int64_t first, int64_t key, const float* values, int64_t stride) {
    tile.rows_of<R>(first, key, values, stride);
  }

  // R rows from `first` on against the block at hand.
  template <int R>
  void rows_of(int64_t first, int64_t key, const float* values, int64_t stride) {
    int from[R], to[R], all_from = 0, all_to = kKeys, seen = 0;
    for (int r = 0; r < R; ++r) {
      from[r] = static_cast<int>(smaller(larger(begin_[first + r] - key, 0), kKeys));
      to[r] = static_cast<int>(smaller(larger(end_[first + r] - key, 0), kKeys));
      all_from = from[r] > all_from ? from[r] : all_from, all_to = to[r] < all_to ? to[r] : all_to;
      seen += from[r] < to[r];
    }
    if (seen == 0) return;
    score<R>(q_ + first, columns_, task_.size, weights_);
    float factor[R];
    for (int r = 0; r < R; ++r)
      factor[r] = from[r] < to[r] ? weigh(weights_[r], from[r], to[r], task_.scale, task_.softcap,
                                          largest_[first + r], sums_[first + r])
                                  : 1.0f;
    float* acc = acc_ + first * padded_;
    if (all_from >= all_to) {
      for (int r = 0; r < R; ++r) mix_row(r, from[r], to[r], values, stride, factor[r], acc);
      return;
    }
    for (int r = 0; r < R; ++r)
      if (from[r] < all_from) mix_row(r, from[r], all_from, values, stride, factor[r], acc), factor[r] = 1;
    mix<R>(weights_, all_from, all_to, values, stride, task_.size, factor, acc, padded_);
    for (int r = 0; r < R; ++r)
      if (to[r] > all_to) mix_row(r, all_to, to[r], values, stride, 1, acc);
  }

  void mix_row(int r, int from, int to, const float* values, int64_t stride, float factor, float* acc) {
    if (from < to)
      mix<1>(weights_ + r, from, to, values, stride, task_.size, &factor, acc + r * padded_, padded_);
  }

  const DecodeAttention& task_;
  int64_t sequence_, head_, group_, padded_, first_row_, count_;
  Workspace memory_;
  float *columns_, *copied_, (*weights_)[kKeys], (*sums_)[16], *largest_, *acc_, *total_, *parts_;
  const float** q_;
  int64_t *begin_, *end_;
};

// Tiles in an order in which halves of it cost the same: the first, the last, the second, ...
FASTGEN_INLINE int64_t folded(int64_t i, int64_t tiles) { return i % 2 ? tiles - 1 - i / 2 : i / 2; }

}  // namespace

void decode_attention(const DecodeAttention& task, const DecodePlan& plan, float* scratch, int64_t first,
                      int64_t last) {
  int64_t s = 0;
  for (int64_t unit = first; unit < last; ++unit) {
    while (plan.sequences[s + 1].first_unit <= unit) ++s;
    const DecodeSequence& how = plan.sequences[s];
    const int64_t i = unit - how.first_unit;
    if (how.apart) {
      Tile tile(task, how, s, i / how.splits, 0);
      tile.attend(how.first_split + i % how.splits,
                  scratch + how.scratch + i * tile.rows() * part_floats(task.size));
    } else {
      Tile(task, how, s, i % task.key_heads, folded(i / task.key_heads, how.tiles)).attend_all();
    }
  }
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
