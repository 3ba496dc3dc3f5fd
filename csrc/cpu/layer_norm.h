// Rows with mean 0 and variance 1.
#pragma once
#include "isa.h"
#include "norm.h"

namespace fastgen {

FASTGEN_DECLARE_KERNEL(void, layer_norm, (const Norm& task, int64_t first_row, int64_t last_row))
FASTGEN_DECLARE_KERNEL(void, layer_norm_backward,
                       (const NormBackward& task, int64_t first_block, int64_t last_block))

}  // namespace fastgen
