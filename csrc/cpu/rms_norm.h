// Rows divided by their root mean square.
#pragma once
#include "isa.h"
#include "norm.h"

namespace fastgen {

FASTGEN_DECLARE_KERNEL(void, rms_norm, (const Norm& task, int64_t first_row, int64_t last_row))
FASTGEN_DECLARE_KERNEL(void, rms_norm_backward,
                       (const NormBackward& task, int64_t first_block, int64_t last_block))

}  // namespace fastgen
