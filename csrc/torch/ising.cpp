#include "../cpu/ising.h"

#include <algorithm>
#include <atomic>
#include <memory>

#include "../cpu/ising_rule.h"
#include "native.h"

namespace fastgen {
namespace {

// A word's number has to fit a Philox block's 32 bits, eight blocks a word.
constexpr int64_t kLongestSide = int64_t{1} << 30, kMostWords = int64_t{1} << 29;
constexpr int64_t kGrainWords = 1 << 11;  // 65536 spins: some 10 us of work for a thread

struct IsingRun {
  IsingShape shape;
  bool metropolis;
  int64_t seed, first_sweep, sweeps;
  bool observe;
};

// Runs one chain from first sweep to last. over_rows(work) calls work(first row, last row) for all rows;
// `shared` says that it gives them to several threads. False if a spin is neither -1 nor +1: then nothing is
// changed.
template <class OverRows>
bool run_chain(const IsingRun& run, const IsingRule& rule, int64_t sample_id, int8_t* spins,
               int64_t* magnetisation, int64_t* bonds, bool shared, const OverRows& over_rows) {
  const IsingShape& shape = run.shape;
  const std::unique_ptr<uint32_t[]> memory(new uint32_t[2 * IsingPlanes::plane_words(shape)]());
  const IsingPlanes planes(shape, memory.get());
  const auto sweeps = FASTGEN_KERNEL(ising_sweeps);
  const auto half_sweep = FASTGEN_KERNEL(ising_half_sweep);
  const auto halo = FASTGEN_KERNEL(ising_halo);
  const auto observe = FASTGEN_KERNEL(ising_observe);
  const auto shared_sweep = [&](int64_t sweep) {
    for (int colour = 0; colour < 2; ++colour) {
      const Stream stream(run.seed, sample_id, static_cast<uint32_t>(2 * sweep + colour), kIsingStream);
      over_rows([&](int64_t first, int64_t last) {
        half_sweep(shape, rule, run.metropolis, stream, planes, colour, first, last);
      });
      halo(shape, planes, colour);
    }
  };

  if (!FASTGEN_KERNEL(ising_pack)(shape, spins, planes)) return false;
  halo(shape, planes, 0);
  halo(shape, planes, 1);
  const int64_t at_once = shared || run.observe ? 1 : run.sweeps;
  for (int64_t done = 0; done < run.sweeps; done += at_once) {
    const int64_t sweep = run.first_sweep + done;
    if (shared)
      shared_sweep(sweep);
    else
      sweeps(shape, rule, run.metropolis, run.seed, sample_id, sweep, sweep + at_once, planes);
    if (run.observe) {
      std::atomic<int64_t> up{0}, unequal{0};
      over_rows([&](int64_t first, int64_t last) {
        const IsingSums sums = observe(shape, planes, first, last);
        up += sums.up;
        unequal += sums.unequal;
      });
      magnetisation[done] = 2 * up - shape.height * shape.width;
      bonds[done] = shape.bonds() - 2 * unequal;
    }
  }
  FASTGEN_KERNEL(ising_unpack)(shape, planes, spins);
  return true;
}

bool ising(Tensor spins, Tensor magnetisation, Tensor bonds, Tensor beta, Tensor field, double coupling,
           bool periodic, bool metropolis, int64_t sweeps, int64_t seed, Tensor sample_ids,
           int64_t first_sweep) {
  require(spins.dim() == 3 && spins.scalar_type() == ScalarType::Char && spins.is_contiguous(), "bad spins");
  const int64_t chains = spins.size(0);
  const IsingShape shape{spins.size(1), spins.size(2), periodic};
  require(shape.height > 0 && shape.width > 0 && shape.height <= kLongestSide &&
              shape.width <= kLongestSide && shape.height * shape.words() <= kMostWords,
          "bad size of the lattice");
  require(!periodic || (shape.height % 2 == 0 && shape.width % 2 == 0),
          "a periodic lattice needs even sides");
  require(sweeps >= 0 && first_sweep >= 0, "bad sweeps");
  for (const Tensor& numbers : {beta, field})
    require(
        numbers.scalar_type() == ScalarType::Double && numbers.is_contiguous() && numbers.numel() == chains,
        "bad beta or field");
  require(sample_ids.scalar_type() == ScalarType::Long && sample_ids.is_contiguous() &&
              sample_ids.numel() == chains,
          "bad sample_ids");
  for (const Tensor& sums : {magnetisation, bonds})
    require(sums.scalar_type() == ScalarType::Long && sums.is_contiguous() && sums.dim() == 2 &&
                sums.size(0) == chains && (sums.size(1) == sweeps || sums.size(1) == 0),
            "bad sums");
  const bool observe = sweeps > 0 && magnetisation.size(1) == sweeps;
  const IsingRun run{shape, metropolis, seed, first_sweep, sweeps, observe};

  std::atomic<bool> ok{true};
  const auto chain = [&](int64_t i, bool shared, const auto& over_rows) {
    const IsingRule rule = ising_rule(data<double>(beta)[i], data<double>(field)[i], coupling, metropolis);
    if (!run_chain(run, rule, data<int64_t>(sample_ids)[i],
                   data<int8_t>(spins) + i * shape.height * shape.width,
                   observe ? data<int64_t>(magnetisation) + i * sweeps : nullptr,
                   observe ? data<int64_t>(bonds) + i * sweeps : nullptr, shared, over_rows))
      ok = false;
  };
  if (chains >= static_cast<int64_t>(torch::stable::get_num_threads())) {
    parallel_for(0, chains, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) chain(i, false, [&](const auto& work) { work(0, shape.height); });
    });
  } else {
    const int64_t grain_rows = std::max<int64_t>(1, kGrainWords / shape.words());
    for (int64_t i = 0; i < chains; ++i)
      chain(i, true, [&](const auto& work) { parallel_for(0, shape.height, grain_rows, work); });
  }
  return ok;
}

}  // namespace
}  // namespace fastgen

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen_native, m) {
  m.def(
      "ising(Tensor(a!) spins, Tensor(b!) magnetisation, Tensor(c!) bonds, Tensor beta, Tensor field,"
      " float coupling, bool periodic, bool metropolis, int sweeps, int seed, Tensor sample_ids,"
      " int first_step) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(fastgen_native, CPU, m) { m.impl("ising", TORCH_BOX(&fastgen::ising)); }
