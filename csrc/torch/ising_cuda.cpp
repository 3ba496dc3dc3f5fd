#include "../cuda/ising.h"
#include "cuda_binding.h"

namespace fastgen::cuda {
namespace {

constexpr int64_t kLongestSide = int64_t(1) << 30, kMostWords = int64_t(1) << 29;
constexpr int64_t kMostChains = (int64_t(1) << 31) - 1;  // a grid's width

bool is_trace(const Tensor& trace, int64_t chains) {
  return trace.scalar_type() == ScalarType::Long && trace.dim() == 2 && trace.size(0) == chains &&
         trace.is_contiguous();
}

// Advances `spins` in place; adds to magnetisation and bonds (chains, sweeps), or observes nothing if they
// are empty.
void ising_out(Tensor spins, Tensor magnetisation, Tensor bonds, Tensor thresholds, bool periodic,
               bool metropolis, int64_t sweeps, int64_t seed, Tensor sample_ids, int64_t first_step) {
  require(spins.dim() == 3 && spins.is_contiguous() && spins.scalar_type() == ScalarType::Char, "bad spins");
  const int64_t chains = spins.size(0), height = spins.size(1), width = spins.size(2);
  require(height > 0 && width > 0 && height <= kLongestSide && width <= kLongestSide &&
              height * ((width + 63) / 64) <= kMostWords,
          "ising on a GPU takes lattices of at most 2**29 groups of 64 columns, no side longer than 2**30");
  require(chains <= kMostChains, "ising on a GPU takes at most 2**31 - 1 chains in a call");
  require(!periodic || (height % 2 == 0 && width % 2 == 0), "a periodic lattice needs even sides");
  require(thresholds.scalar_type() == ScalarType::Long && thresholds.numel() == 18 * chains &&
              thresholds.is_contiguous(),
          "bad thresholds");
  require(sample_ids.scalar_type() == ScalarType::Long && sample_ids.numel() == chains &&
              sample_ids.is_contiguous(),
          "bad sample_ids");
  require(sweeps >= 0 && is_trace(magnetisation, chains) && is_trace(bonds, chains) &&
              magnetisation.size(1) == bonds.size(1) &&
              (magnetisation.size(1) == 0 || magnetisation.size(1) == sweeps),
          "bad traces");
  for (const Tensor& tensor : {magnetisation, bonds, thresholds, sample_ids})
    require(tensor.device() == spins.device(), "tensors on different devices");

  const bool observe = magnetisation.size(1) != 0;
  const Ising problem{chains,
                      static_cast<int>(height),
                      static_cast<int>(width),
                      periodic,
                      metropolis,
                      sweeps,
                      first_step,
                      static_cast<uint64_t>(seed),
                      data<const int64_t>(sample_ids),
                      data<const int64_t>(thresholds),
                      data<int8_t>(spins),
                      observe ? data<int64_t>(magnetisation) : nullptr,
                      observe ? data<int64_t>(bonds) : nullptr};
  const OnDeviceOf device(spins);
  const int64_t bytes = ising_workspace(problem);
  const Tensor workspace = torch::stable::new_empty(spins, {bytes});
  check_launch(ising(problem, bytes != 0 ? workspace.data_ptr() : nullptr, device.queue()));
}

}  // namespace
}  // namespace fastgen::cuda

FASTGEN_DEFINE_OPS(FASTGEN_CUDA_LIBRARY, m) {
  m.def(
      "ising(Tensor(a!) spins, Tensor(b!) magnetisation, Tensor(c!) bonds, Tensor thresholds, bool periodic, "
      "bool metropolis, int sweeps, int seed, Tensor sample_ids, int first_step) -> ()");
}

FASTGEN_IMPLEMENT_OPS(FASTGEN_CUDA_LIBRARY, FASTGEN_CUDA_DEVICE, m) {
  m.impl("ising", TORCH_BOX(&fastgen::cuda::ising_out));
}
