// One pass of a decoder-only transformer: the new tokens of many sequences through all layers.
#pragma once
#include <cstdint>
#include <vector>

#include "isa.h"
#include "linear.h"
#include "packed_linear.h"
#include "team.h"

namespace fastgen {

enum class NormKind : int64_t { rms, layer, count };
enum class RopeKind : int64_t { none, half, interleaved, count };

struct TransformerNorm {
  const float *weight, *bias;  // (hidden,); bias may be absent
};

struct TransformerProjection {
  PackedMatrix weight;  // none where its data is null
  const float* bias;    // (outputs,) or null
};

struct TransformerLayer {
  TransformerNorm attention_norm, mlp_norm;
  TransformerProjection q, k, v, o, gate, up, down;
  float *keys, *values;  // (pages, kv_heads, page, head_size)
};

struct Transformer {
  int64_t rows, sequences, wanted_rows;                   // new tokens, ...
  const int64_t *tokens, *query_starts, *lengths, *wanted;
  const int32_t* block_table;  // (sequences, table_width)
  int64_t table_width, page;
  int64_t vocabulary, hidden, heads, kv_heads, head_size, context;
  NormKind norm;
  RopeKind rope;
  Activation activation;
  int64_t window;  // 0 is none
  float eps, scale, softcap;
  PackedMatrix embedding;
  const float *positions, *cos, *sin;  // (context, hidden), (context, head_size / 2) or null
  TransformerNorm final_norm;
  TransformerProjection head;
  std::vector<TransformerLayer> layers;
  float* logits;  // (wanted_rows, vocabulary)
};

// The whole pass; every thread of the team calls it with the same arguments.
FASTGEN_DECLARE_KERNEL(void, transformer, (const Transformer& pass, float* scratch, Team& team))

int64_t transformer_scratch(const Transformer& pass);  // floats

}  // namespace fastgen
