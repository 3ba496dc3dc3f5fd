#include "layer_norm.h"

#include "norm_rows.h"

namespace fastgen::FASTGEN_ISA {

void layer_norm(const Norm& task, int64_t first_row, int64_t last_row) {
  normalize<true>(task, first_row, last_row);
}

void layer_norm_backward(const NormBackward& task, int64_t first_block, int64_t last_block) {
  differentiate<true>(task, first_block, last_block);
}

}  // namespace fastgen::FASTGEN_ISA
