// softmax(scale q k^T + bias) v over keys in order, and its gradients (fastgen/reference/attention.py).
#pragma once
#include <atomic>
#include <cstdint>

#include "isa.h"

namespace fastgen {

struct Strided {  // element strides; of packed sequences batch is 0
  void* data;
  int64_t batch, head, row, column;
};

struct Attention {
  enum class Numbers { float32, float64, bfloat16 } numbers;  // of q, k, v and what is made of them
  enum class Causal { none, upper_left, lower_right } causal;
  int64_t batch, query_heads, key_heads, size, value_size;
  int64_t queries, keys;                     // of every sequence, or
  const int64_t *query_starts, *key_starts;  // where the packed ones begin, and the last ends
  int64_t window;                            // 0 for none
  double softcap, scale;                     // 0 for none
  double dropout;                            // 0 for none
  uint64_t seed;
  const int64_t* sample_ids;
  Strided q, k, v, out;
  Strided bias, mask;  // of float or double as is computed; of bytes; without data if there is none
  Strided lse;         // float or double; no columns
  // Of the backward pass, where out and lse are read. grad_bias has a place for every score, and 0s.
  Strided grad_out, grad_lse, grad_q, grad_k, grad_v, grad_bias;
  // The first unit of work of each sequence and the number of all.
  const int64_t* units;

  struct Sequence {
    int64_t batch, queries, keys, query_start, key_start;
  };
  Sequence sequence(int64_t b) const {
    if (!query_starts) return {b, queries, keys, 0, 0};
    return {b, query_starts[b + 1] - query_starts[b], key_starts[b + 1] - key_starts[b], query_starts[b],
            key_starts[b]};
  }
  int64_t group() const { return query_heads / key_heads; }
};

// What a unit of work is: a block of the queries of a group of heads; or a group of heads with all its
// queries; or a range of its keys. Gradients of q and bias are added up over keys, those of k and v over
// queries, always in order, so that the bits are the same either way.
enum class AttentionUnit { queries, head, keys };
constexpr int64_t kAttentionKeys = 512;  // of such a range

FASTGEN_DECLARE_KERNEL(int64_t, attention_rows, (const Attention& task))  // queries of a block
// Both take units of work, from the last to the first, until none is left.
FASTGEN_DECLARE_KERNEL(void, attention, (const Attention& task, std::atomic<int64_t>& left))
FASTGEN_DECLARE_KERNEL(void, attention_backward,
                       (const Attention& task, AttentionUnit unit, std::atomic<int64_t>& left))

}  // namespace fastgen
