// Draws a token for each row of logits. What the settings mean is told by fastgen/ops/sample_logits.py, the
// arithmetic, bit for bit, by fastgen/reference/sample_logits.py.
#pragma once
#include <cstdint>

#include "isa.h"

namespace fastgen {

struct SampleLogits {
  int64_t rows, vocabulary, prompt_length, output_length;
  const float* logits;        // (rows, vocabulary)
  const int64_t* sample_ids;  // (rows)
  const int64_t* step;        // (rows)
  const double* settings;     // (rows, kSettings)
  const int64_t* prompt;      // (rows, prompt_length); -1 is no token
  const int64_t* output;      // (rows, output_length); -1 is no token
  const float* bias;          // (vocabulary) with stride 0, (rows, vocabulary) with stride `vocabulary`
  int64_t bias_stride;
  uint64_t seed;
  uint32_t stream;
  int64_t* token;  // (rows); kHasNan or kHasNone where nothing can be drawn
  float* log_prob;

  static constexpr int64_t kSettings = 8, kHasNan = -1, kHasNone = -2;
};

FASTGEN_DECLARE_KERNEL(void, sample_logits, (const SampleLogits& task, int64_t first_row, int64_t last_row))

}  // namespace fastgen
