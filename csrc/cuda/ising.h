// Launcher of the op ising. fastgen/reference/ising.py specifies what it computes.
#pragma once
#include <cstdint>

typedef struct CUstream_st* cudaStream_t;

namespace fastgen::cuda {

struct Ising {
  int64_t chains;
  int height, width;
  bool periodic, metropolis;
  int64_t sweeps, first_step;
  uint64_t seed;
  // On the device:
  const int64_t* sample_ids;  // (chains)
  const int64_t*
      thresholds;          // (chains, 2, 9): up iff the number is below [old spin up, sum of neighbours + 4]
  int8_t* spins;           // (chains, height, width) of -1 and +1, advanced in place
  int64_t* magnetisation;  // (chains, sweeps), zeros on entry, added to after each sweep; null: not observed
  int64_t* bonds;          // (chains, sweeps) likewise: the sum over bonds of s * s'
};

// Bytes of device memory that `ising` needs as workspace; 0 where a packed chain fits into shared memory.
int64_t ising_workspace(const Ising& problem);

// Returns CUDA's error code, 0 for success, and does not wait.
int ising(const Ising& problem, void* workspace, cudaStream_t queue);

}  // namespace fastgen::cuda
