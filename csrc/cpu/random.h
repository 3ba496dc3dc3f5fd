// Draws of one stream: elements 4 * first_block to 4 * first_block + count - 1. Results larger than the
// caches are best written past them.
#pragma once
#include <cstdint>

#include "fastgen/philox.h"
#include "isa.h"

namespace fastgen {

FASTGEN_DECLARE_KERNEL(void, bits,
                       (const Stream& stream, int64_t first_block, int64_t count, bool past_caches,
                        uint32_t* out))
FASTGEN_DECLARE_KERNEL(void, uniform,
                       (const Stream& stream, int64_t first_block, int64_t count, bool past_caches,
                        float* out))
FASTGEN_DECLARE_KERNEL(void, normal,
                       (const Stream& stream, int64_t first_block, int64_t count, bool past_caches,
                        float* out))
// Element i is true with probability p[i * stride].
FASTGEN_DECLARE_KERNEL(void, bernoulli,
                       (const Stream& stream, int64_t first_block, int64_t count, const double* p,
                        int64_t stride, bool* out))

}  // namespace fastgen
