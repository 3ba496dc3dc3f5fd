// Block Gibbs sampling of a restricted Boltzmann machine: the loop over half steps, free of torch.
#pragma once
#include <cstdint>

#include "fastgen/philox.h"
#include "isa.h"

namespace fastgen {

// States of binary units, (chains, units) of 0 and 1: as they came, and where the new ones go.
struct RbmStates {
  const void* from;
  void* to;
  bool floats;  // float32; bytes otherwise
};

// What one call works on. All arrays are dense and row-major.
struct RbmGibbs {
  int64_t chains, visible, hidden, half_steps;
  uint64_t seed;
  uint32_t first_step, draw_stream, noise_stream;
  const int64_t* sample_ids;            // (chains)
  const void* weight;                   // (visible, hidden), as many elements apart as follows, of which
  int64_t visible_step, hidden_step;    // one is 1
  bool bfloat16;                        // of weight; float32 otherwise
  const float *v_bias, *h_bias, *beta;  // (visible), (hidden), (chains)
  const uint8_t* clamp_mask;  // null, or rows of `visible` bytes clamp_stride apart: 1 keeps the unit
  int64_t clamp_stride;       // 0 or visible
  RbmStates v, h;             // v unused if v_real is there
  float* v_real;              // gaussian visible units, read and written, else null
  float *v_mean, *h_mean;     // null, or where the last update of each layer leaves its means
};

// How a call is shared out: `teams` groups of chains, each worked on by `members` threads that split the
// units.
struct RbmPlan {
  int64_t teams, members;
  int64_t progress_bytes;   // the first bytes of the workspace: zeros on entry
  int64_t workspace_bytes;  // 64-byte aligned
};

FASTGEN_DECLARE_KERNEL(RbmPlan, rbm_plan, (const RbmGibbs& task, int64_t threads))
// Does the work of workers first to last - 1 of teams * members, and that of others who are late. False if a
// state is neither 0 nor 1: then the new ones mean nothing.
FASTGEN_DECLARE_KERNEL(bool, rbm_gibbs,
                       (const RbmGibbs& task, const RbmPlan& plan, void* workspace, int64_t first,
                        int64_t last))

}  // namespace fastgen
