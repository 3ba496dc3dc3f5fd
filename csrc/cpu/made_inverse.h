// The inverse of a masked autoregressive network with its transform, for blocks of rows, free of torch.
//
// Degrees are replaced by their ranks. The units of each layer are sorted by rank and lie in panels of
// kPanel; what a unit may see is then a prefix of the units of the layer below.
#pragma once
#include <cstdint>
#include <vector>

#include "isa.h"
#include "linear.h"
#include "rq_spline.h"

namespace fastgen {

enum class ScaleMap : int64_t { exp, tanh, atan, softclip, sigmoid, softplus, reciprocal_sigmoid, count };

constexpr int64_t kMadePanel = 8;

// One masked linear layer. Ranks go from 0 to ranks - 1.
struct MadeLayer {
  int64_t inputs, units;  // as the caller has them
  bool last, activated, residual;
  int64_t weight, bias;        // where they begin in the caller's arrays
  int64_t addend, gate;        // columns of the context, or -1
  std::vector<int64_t> order;  // the caller's number of each sorted unit; those that no output needs are gone
  std::vector<int64_t> first;  // (ranks + 1): units first[r] to first[r + 1] - 1 have rank r
  std::vector<int64_t> skip;   // of a residual layer: the place of each unit's partner two layers below
  std::vector<int64_t> panel;  // where each panel's weights begin: (inputs of its last unit, kMadePanel)
  int64_t terms;               // where the layer's addends and then gates begin in a block's columns
  bool kept;                   // whether a layer above adds what this one gives
};

struct MadePlan {
  std::vector<MadeLayer> layers;
  std::vector<int64_t> features;       // the caller's number of each sorted feature
  std::vector<int64_t> first_feature;  // (ranks + 1)
  int64_t ranks, parameters;           // parameters of each feature
  int64_t packed;                      // numbers in all panels
  int64_t terms;                       // columns of addends and gates
  int64_t widest;                      // most features of one rank
  const std::vector<int64_t>& first_input(size_t layer) const {
    return layer == 0 ? first_feature : layers[layer - 1].first;
  }
  const std::vector<int64_t>& inputs(size_t layer) const {
    return layer == 0 ? features : layers[layer - 1].order;
  }
  // How many sorted inputs of a layer its units of this rank see.
  int64_t reach(size_t layer, int64_t rank) const {
    return first_input(layer)[rank + (layers[layer].last ? 0 : 1)];
  }
};

struct MadeInverse {
  int64_t rows, columns;  // of z, of the context
  bool float64;           // all but the weights: double, else float
  bool bfloat16;          // the weights; else as the others
  const void *z, *weight, *bias, *context;
  void *x, *log_det;
  Activation activation;
  bool spline;
  RqSpline curve;  // how a spline is made, without its arrays
  ScaleMap scale_map;
  double clamp, min_scale;
  const MadePlan* plan;
  void* pack;   // (plan->packed) of the wide type
  bool narrow;  // blocks of a single vector of rows, for few rows
};

// Rows that are worked on together.
FASTGEN_DECLARE_KERNEL(int64_t, made_rows, (const MadeInverse& task))
// Sorts the weights of a layer into panels first to last - 1.
FASTGEN_DECLARE_KERNEL(void, made_pack, (const MadeInverse& task, int64_t layer, int64_t first, int64_t last))
// Blocks first to last - 1 of made_rows(task) rows.
FASTGEN_DECLARE_KERNEL(void, made_inverse, (const MadeInverse& task, int64_t first, int64_t last))

}  // namespace fastgen
