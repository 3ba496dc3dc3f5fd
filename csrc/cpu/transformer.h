// One pass of a decoder-only transformer: the new tokens of many sequences through all layers.
#pragma once
#include <cstdint>

#include "decode_attention.h"
#include "isa.h"
#include "packed_linear.h"
#include "team.h"

namespace fastgen {

enum class NormKind : int64_t { rms, layer, count };
enum class RopeKind : int64_t { none, half, interleaved, count };

struct PackedMatrix {
  WeightFormat format;
  const void* data;  // null: there is no such weight
  const float* scale;
  int64_t outputs, inputs;
};

struct TransformerNorm {
  const float *weight, *bias;
};

struct TransformerProjection {
  PackedMatrix weight;
  const float* bias;
};

struct TransformerLayer {
  TransformerNorm attention_norm, mlp_norm;
  TransformerProjection q, k, v, o, gate, up, down;
};

struct Transformer {
  NormKind norm;
  RopeKind rope;
  Activation activation;
  int64_t hidden, heads, kv_heads, head_size;
  float eps;
  PackedMatrix embedding;
  const float *positions, *cos, *sin;  // a row for each position, or null
  TransformerNorm final_norm;
  TransformerProjection head;
  const TransformerLayer* layers;
  int64_t layer_count;
};

// The new tokens, and where their sequences keep keys and values.
struct TransformerPass {
  const Transformer* network;
  const int64_t *tokens, *wanted;
  int64_t rows, wanted_rows;
  float *keys, *values;       // (layers, pages, kv_heads, page, head_size)
  int64_t layer_stride;       // numbers of a layer's keys
  DecodeAttention attention;  // but for what differs between layers
  float* logits;              // (wanted_rows, vocabulary)
};

// Rows on their way through a layer.
struct TransformerScratch {
  float *x, *next, *h;        // (rows, hidden)
  float *q, *attended;        // (rows, heads * head_size)
  float *k, *v;               // (rows, kv_heads * head_size)
  float *gate, *up;           // (rows, the most between)
  float *parts, *attending;   // of decode_attention: for all threads, and its workspace for each
  QuantizedGroup* quantized;  // (rows, groups of the most inputs)
  ByteBlock* bytes;           // (rows, blocks of the most inputs)
  PanelBlock* unpacked;       // (threads, blocks of the most inputs)
  int64_t unpacked_stride;
};

// Every thread of the team calls it with the same arguments but the last.
FASTGEN_DECLARE_KERNEL(void, transformer,
                       (const TransformerPass& pass, const DecodePlan& plan,
                        const TransformerScratch& scratch, Member& me) noexcept)

}  // namespace fastgen
