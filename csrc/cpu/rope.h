// Pairs (a, b) of each head turned: (a cos - b sin, b cos + a sin).
#pragma once
#include <cstdint>

#include "isa.h"
#include "storage.h"

namespace fastgen {

struct Rope {
  Storage storage;  // of x and y
  int64_t positions, heads, size;
  bool interleaved;       // pairs are elements 2i and 2i + 1 of a head, else i and i + size / 2
  const void* x;          // (rows, heads, size), row r at position r mod positions
  const void *cos, *sin;  // (positions, size / 2) float, or double for float64
  void* y;                // as x, or x itself
};

FASTGEN_DECLARE_KERNEL(void, rope, (const Rope& task, int64_t first_row, int64_t last_row))

// The heads of one row, `from_stride` apart, to where they are `to_stride` apart; `to` may be `from`.
FASTGEN_DECLARE_KERNEL(void, rotate,
                       (const float* from, int64_t from_stride, float* to, int64_t to_stride,
                        const float* cos, const float* sin, int64_t heads, int64_t size, bool interleaved))

}  // namespace fastgen
