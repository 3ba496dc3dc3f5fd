#include "decode_attention.h"

#include "decode_tile.h"

namespace fastgen::FASTGEN_ISA {
namespace {

FASTGEN_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

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

struct alignas(64) Row {
  float sums[16], factors[kSplitBlocks];
  int64_t begin, end;  // the keys that it sees
  float largest;
};
static_assert(sizeof(Row) == kRowFloats * sizeof(float) && kTileRows <= kSplitRows);

// A tile of rows (positions by heads of a group, a group's heads side by side) against a cache of S. Few rows
// take the blocks of a split together, scores, weights and values one after the other: keys and values are
// then read in long runs, which the processor sees coming. Many take each block, while it is in the caches.
template <class S>
class Tile {
 public:
  Tile(const DecodeAttention& task, const DecodeSequence& how, float* workspace, int64_t sequence,
       int64_t head, int64_t tile)
      : task_(task),
        sequence_(sequence),
        head_(head),
        group_(task.query_heads / task.key_heads),
        padded_(padded_size(task.size)),
        part_(part_floats(task.size)),
        first_row_(task.query_starts[sequence] + tile * how.tile_positions),
        count_(group_ * smaller(how.tile_positions, task.query_starts[sequence + 1] - first_row_)),
        blocks_(count_ <= kTileRows ? kSplitBlocks : 1),
        in_place_(task.size % kChains == 0 && (count_ <= kTileRows || sizeof(S) == 4)) {
    const auto take = [&](int64_t floats) {
      float* const taken = workspace;
      workspace += floats;
      return taken;
    };
    rows_ = reinterpret_cast<Row*>(take(count_ * kRowFloats));
    weights_ = reinterpret_cast<float (*)[kKeys]>(take(count_ * blocks_ * kKeys));
    copy_ = take(kKeys * padded_), q_ = take(count_ * padded_), acc_ = take(count_ * padded_);
    parts_ = take(count_ * part_), total_ = take(count_ * part_);
    const int64_t first_position = task.lengths[sequence] - task.query_starts[sequence + 1] + first_row_;
    const float scale =
        task.softcap > 0 ? task.scale / task.softcap : task.scale * kLog2OfE;  // as weigh() wants
    for (int64_t r = 0; r < count_; ++r) {
      copy_rows(task.q + row(r) * task.q_stride + head_of(r) * task.size, 0, 1, task.size, padded_,
                q_ + r * padded_);
      for (int64_t d = 0; d < padded_; ++d) q_[r * padded_ + d] *= scale;
      rows_[r].end = larger(0, first_position + r / group_ + 1);
      rows_[r].begin = task.window ? larger(0, rows_[r].end - task.window) : 0;
      total_[r * part_ + 1] = 0;
    }
  }

  int64_t rows() const { return count_; }

  // The part of each row that comes from one split.
  void attend(int64_t split, float* parts) {
    for (int64_t r = 0; r < count_; ++r) {
      rows_[r].largest = kNone;
      memset(rows_[r].sums, 0, sizeof rows_[r].sums);
    }
    memset(acc_, 0, count_ * padded_ * sizeof *acc_);
    const int64_t first = larger(split * kKeySplit, rows_[0].begin) / kKeys * kKeys;
    const int64_t last = smaller((split + 1) * kKeySplit, rows_[count_ - 1].end);
    for (int64_t key = first; key < last; key += blocks_ * kKeys)
      take_blocks(key, smaller(key + blocks_ * kKeys, last));
    for (int64_t r = 0; r < count_; ++r) {
      float* sum = rows_[r].sums;
      for (int n = 8; n > 0; n /= 2)
        for (int i = 0; i < n; ++i) sum[i] += sum[i + n];
      parts[r * part_] = rows_[r].largest, parts[r * part_ + 1] = sum[0];
      memcpy(parts + r * part_ + 16, acc_ + r * padded_, padded_ * sizeof *acc_);
    }
  }

  // All splits, and the result.
  void attend_all() {
    const int64_t first = rows_[0].begin / kKeySplit;
    const int64_t last = (rows_[count_ - 1].end + kKeySplit - 1) / kKeySplit;
    for (int64_t split = first; split < last; ++split) {
      attend(split, parts_);
      for (int64_t r = 0; r < count_; ++r) merge_part(parts_ + r * part_, task_.size, total_ + r * part_);
    }
    for (int64_t r = 0; r < count_; ++r) write_row(task_, total_ + r * part_, row(r), head_of(r));
  }

 private:
  int64_t row(int64_t r) const { return first_row_ + r / group_; }
  int64_t head_of(int64_t r) const { return head_ * group_ + r % group_; }

  // Keys first .. last - 1, the first being that of a block.
  void take_blocks(int64_t first, int64_t last) {
    const int64_t after = last < rows_[count_ - 1].end ? last : first;
    for (int64_t key = first, b = 0; key < last; key += kKeys, ++b) {
      const bool more = key + kKeys < last;
      score_block(key, smaller(kKeys, last - key), weights_ + b * count_,
                  more ? place(task_.keys, key + kKeys) : place(task_.values, first));
    }
    for (int64_t key = first, b = 0; key < last; key += kKeys, ++b)
      for (int64_t r = 0; r < count_; ++r) weigh_row(r, key, b);
    for (int64_t key = first, b = 0; key < last; key += kKeys, ++b) {
      const bool more = key + kKeys < last;
      mix_block(key, smaller(kKeys, last - key), b,
                more ? place(task_.values, key + kKeys) : place(task_.keys, after));
    }
  }

  struct Seen {
    int from, to;
  };
  // The keys of a block that row r sees, counted from the first of the block.
  Seen seen(int64_t r, int64_t key) const {
    return {static_cast<int>(smaller(larger(rows_[r].begin - key, 0), kKeys)),
            static_cast<int>(smaller(larger(rows_[r].end - key, 0), kKeys))};
  }

  void score_block(int64_t key, int64_t count, float (*scores)[kKeys], const S* next) {
    with_rows(task_.keys, key, count, next, [&](const auto& keys) {
      rows_together([&]<int R>(int64_t first) {
        int64_t visible = 0;
        for (int r = 0; r < R; ++r) {
          const Seen s = seen(first + r, key);
          visible += s.from < s.to;
        }
        if (visible > 0) score<R>(q_ + first * padded_, padded_, keys, count, scores + first);
      });
    });
  }

  void weigh_row(int64_t r, int64_t key, int64_t block) {
    Row& row = rows_[r];
    const auto [from, to] = seen(r, key);
    row.factors[block] =
        from < to ? weigh(weights_[block * count_ + r], from, to, task_.softcap, row.largest, row.sums)
                  : 1.0f;
  }

  void mix_block(int64_t key, int64_t count, int64_t block, const S* next) {
    with_rows(task_.values, key, count, next, [&](const auto& values) {
      rows_together([&]<int R>(int64_t first) { mix_rows<R>(first, key, block, values); });
    });
  }

  // The keys that all R rows see go together; before and behind them each row has its own.
  template <int R, class V>
  void mix_rows(int64_t first, int64_t key, int64_t block, const V& values) {
    const float (*weights)[kKeys] = weights_ + block * count_ + first;
    Seen each[R];
    float factor[R], *acc = acc_ + first * padded_;
    int all_from = 0, all_to = kKeys;
    for (int r = 0; r < R; ++r) {
      each[r] = seen(first + r, key), factor[r] = rows_[first + r].factors[block];
      all_from = each[r].from > all_from ? each[r].from : all_from;
      all_to = each[r].to < all_to ? each[r].to : all_to;
    }
    const auto mix_row = [&](int r, int from, int to) {
      if (from >= to) return;
      mix<1>(weights + r, from, to, values, task_.size, factor + r, acc + r * padded_, padded_);
      factor[r] = 1;
    };
    if (all_from >= all_to) {
      for (int r = 0; r < R; ++r) mix_row(r, each[r].from, each[r].to);
      return;
    }
    for (int r = 0; r < R; ++r) mix_row(r, each[r].from, all_from);
    mix<R>(weights, all_from, all_to, values, task_.size, factor, acc, padded_);
    for (int r = 0; r < R; ++r) factor[r] = 1, mix_row(r, all_to, each[r].to);
  }

  const S* place(const KeyCache& cache, int64_t key) const {
    const int64_t page =
        task_.block_table ? task_.block_table[sequence_ * task_.table_stride + key / task_.page] : sequence_;
    const int64_t inside = task_.block_table ? key % task_.page : key;
    return static_cast<const S*>(cache.data) + page * cache.page_stride + head_ * cache.head_stride +
           inside * cache.key_stride;
  }

  // f of the rows of a block of keys or values, where they lie or copied: many rows read bfloat16 as it was
  // converted once, and heads are filled up to whole vectors.
  template <class F>
  void with_rows(const KeyCache& cache, int64_t key, int64_t count, const S* next, F f) {
    const S* const start = place(cache, key);
    if (in_place_ && task_.far) return f(Rows<S, true>{start, cache.key_stride, next});
    if (in_place_) return f(Rows<S, false>{start, cache.key_stride, nullptr});
    copy_rows(start, cache.key_stride, count, task_.size, padded_, copy_);
    f(Rows<float, false>{copy_, padded_, nullptr});
  }

  // f<R>(first) of all rows, as many as fill the registers at a time.
  template <class F>
  void rows_together(F f) {
    const int64_t groups = (count_ + kTileRows - 1) / kTileRows;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = g * count_ / groups, last = (g + 1) * count_ / groups;
      some_rows<kTileRows>(last - first, first, f);
    }
  }
  template <int R, class F>
  static void some_rows(int64_t count, int64_t first, F& f) {
    if constexpr (R > 1)
      if (count < R) return some_rows<R - 1>(count, first, f);
    f.template operator()<R>(first);
  }

  const DecodeAttention& task_;
  int64_t sequence_, head_, group_, padded_, part_, first_row_, count_, blocks_;
  bool in_place_;
  Row* rows_;
  float (*weights_)[kKeys];  // scores before, of each block and row
  float *copy_, *q_, *acc_, *parts_, *total_;
};

// Tiles in an order in which halves of it cost the same: the first, the last, the second, ...
FASTGEN_INLINE int64_t folded(int64_t i, int64_t tiles) { return i % 2 ? tiles - 1 - i / 2 : i / 2; }

template <class S>
void units(const DecodeAttention& task, const DecodePlan& plan, float* scratch, float* workspace,
           int64_t first, int64_t last) {
  int64_t s = 0;
  for (int64_t unit = first; unit < last; ++unit) {
    while (plan.sequences[s + 1].first_unit <= unit) ++s;
    const DecodeSequence& how = plan.sequences[s];
    const int64_t i = unit - how.first_unit;
    if (how.apart) {
      Tile<S> tile(task, how, workspace, s, i / how.splits, 0);
      tile.attend(how.first_split + i % how.splits,
                  scratch + how.scratch + i * tile.rows() * part_floats(task.size));
    } else {
      Tile<S>(task, how, workspace, s, i % task.key_heads, folded(i / task.key_heads, how.tiles))
          .attend_all();
    }
  }
}

}  // namespace

void decode_attention(const DecodeAttention& task, const DecodePlan& plan, float* scratch, float* workspace,
                      int64_t first, int64_t last) {
  task.bfloat16 ? units<Bfloat16>(task, plan, scratch, workspace, first, last)
                : units<float>(task, plan, scratch, workspace, first, last);
}

void decode_attention_merge(const DecodeAttention& task, const DecodePlan& plan, const float* scratch,
                            float* workspace, int64_t first, int64_t last) {
  const int64_t part = part_floats(task.size), group = task.query_heads / task.key_heads;
  float* const total = workspace;
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
