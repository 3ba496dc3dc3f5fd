// softmax(q K^T scale) V of the last positions of each sequence against its cache of keys and values.
//
// Keys are taken in blocks of 64 and splits of 8 blocks, counted from the sequence's first key, and the
// splits of a position are merged in order: its bits depend on nothing but its query and the keys it attends
// to. Few new positions are divided among units by splits, whose parts are merged in a second stage; many by
// tiles of positions, each of which goes through its splits itself. The arithmetic is the same.
#pragma once
#include <cstdint>

#include "isa.h"

namespace fastgen {

constexpr int64_t kKeyBlock = 64, kSplitBlocks = 8, kKeySplit = kSplitBlocks * kKeyBlock;

// A row of a key or value head lies at data + page * page_stride + head * head_stride + key * key_stride, in
// numbers. Without pages a sequence is a page of its own.
struct KeyCache {
  const void* data;
  int64_t page_stride, head_stride, key_stride;
};

struct DecodeAttention {
  int64_t sequences, query_heads, key_heads, size;
  const int64_t* query_starts;  // (sequences + 1): rows of q of each sequence
  const int64_t* lengths;       // (sequences): keys of each, those of the new positions included
  const float* q;               // q + row * q_stride + head * size
  int64_t q_stride;
  KeyCache keys, values;
  bool bfloat16;               // what the cache holds, or float
  bool far;                    // keys and values lie beyond the caches: no bit depends on it
  const int32_t* block_table;  // (sequences, table_stride), or null
  int64_t table_stride, page;  // keys of a page: a multiple of 64
  float scale, softcap;        // softcap 0 is none
  int64_t window;              // keys that a position sees at the most, 0 for all
  float* out;                  // out + row * out_stride + head * size
  int64_t out_stride;
  float* lse;  // (rows, query_heads), or null
};

// How a sequence is divided.
struct DecodeSequence {
  int64_t first_unit, first_merge, scratch;  // the last: where its parts begin
  int64_t tile_positions, tiles;
  int64_t first_split, splits;
  bool apart;  // units are (head, split), to be merged; otherwise (tile, head)
};

// What is to be done, as decode_plan.h finds it from the lengths; one plan serves all layers of a network.
struct DecodePlan {
  const DecodeSequence* sequences;  // one more than there are: the last begins behind all
  int64_t units, merges;            // no merges: the second stage has nothing to do
  int64_t scratch;                  // floats that all units share
  int64_t workspace;                // floats that each thread has for itself
};

// A part of a row: its maximum and sum of weights, and from the 16th number on the sum of weighted values.
constexpr int64_t padded_size(int64_t size) { return (size + 15) / 16 * 16; }
constexpr int64_t part_floats(int64_t size) { return 16 + padded_size(size); }

// What a thread works in, for `rows` (positions by heads of a group) at a time: up to kSplitRows take a split
// of keys together, more a block.
constexpr int64_t kSplitRows = 6, kRowFloats = 32;
constexpr int64_t workspace_floats(int64_t rows, int64_t size) {
  const int64_t keys = rows <= kSplitRows ? kKeySplit : kKeyBlock;
  return kKeyBlock * padded_size(size) +
         rows * (keys + kRowFloats + 2 * padded_size(size) + 2 * part_floats(size));
}

// Units first .. last - 1 of the plan; then, when all are done, merges. Scratch and workspace are 64-byte
// aligned.
FASTGEN_DECLARE_KERNEL(void, decode_attention,
                       (const DecodeAttention& task, const DecodePlan& plan, float* scratch, float* workspace,
                        int64_t first, int64_t last))
FASTGEN_DECLARE_KERNEL(void, decode_attention_merge,
                       (const DecodeAttention& task, const DecodePlan& plan, const float* scratch,
                        float* workspace, int64_t first, int64_t last))

}  // namespace fastgen
