// Checkerboard sweeps of the Ising model on bit-packed lattices. A chain that fits into shared memory stays
// there for all its sweeps, in one thread block. A larger one lies packed in device memory, and each half
// sweep is a launch.
#include "fastgen/streams.h"
#include "ising.h"
#include "ising_word.h"

namespace fastgen::cuda {
namespace {

constexpr int kThreads = 512;

// Row and group of the words `first`, `first + step`, ... of a colour, without a division for each.
struct WordWalk {
  int row, group, row_step, group_step, groups;

  __device__ WordWalk(int first, int step, int groups_)
      : row(first / groups_),
        group(first % groups_),
        row_step(step / groups_),
        group_step(step % groups_),
        groups(groups_) {}
  __device__ void next() {
    row += row_step;
    group += group_step;
    if (group >= groups) {
      group -= groups;
      row++;
    }
  }
};

// Columns 64 * group to 64 * group + 63 of a row, to and from one word of each colour.
__device__ void pack(const Lattice& lattice, const int8_t* spins, uint32_t* packed, int row, int group) {
  const int8_t* from = spins + static_cast<int64_t>(row) * lattice.width;
  uint32_t word[2] = {0, 0};  // by parity of the column
  for (int j = 64 * group; j < min(64 * group + 64, lattice.width); j++) {
    word[j % 2] |= static_cast<uint32_t>(from[j] > 0) << (j / 2 % 32);
  }
  const int64_t at = static_cast<int64_t>(row) * lattice.groups + group;
  packed[at + (row & 1) * lattice.words()] = word[0];
  packed[at + (~row & 1) * lattice.words()] = word[1];
}
__device__ void unpack(const Lattice& lattice, const uint32_t* packed, int8_t* spins, int row, int group) {
  const int64_t at = static_cast<int64_t>(row) * lattice.groups + group;
  const uint32_t even = packed[at + (row & 1) * lattice.words()];
  const uint32_t odd = packed[at + (~row & 1) * lattice.words()];
  int8_t* to = spins + static_cast<int64_t>(row) * lattice.width;
  for (int j = 64 * group; j < min(64 * group + 64, lattice.width); j++) {
    to[j] = ((j % 2 ? odd : even) >> (j / 2 % 32) & 1) ? 1 : -1;
  }
}

// Sums over the words that a thread has updated; colour 1 closes a sweep, and every bond has one end of that
// colour.
struct Observed {
  int magnetisation = 0, bonds = 0;

  __device__ void add(const Lattice& lattice, const Neighbours& around, uint32_t word, int parity,
                      int group) {
    const uint32_t valid = lattice.valid(parity, group), beside = around.up[2];
    magnetisation += 2 * (__popc(word) + __popc(beside));
    magnetisation -= __popc(valid) + __popc(lattice.valid(1 - parity, group));
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const uint32_t there = valid & ~around.missing[k];
      bonds += __popc(there) - 2 * __popc((word ^ around.up[k]) & there);
    }
  }

  // Every thread of the warp takes part.
  __device__ void store(const Ising& problem, int64_t chain, int64_t sweep) const {
    const int m = __reduce_add_sync(~0u, magnetisation), b = __reduce_add_sync(~0u, bonds);
    if (threadIdx.x % 32 != 0) return;
    const int64_t at = chain * problem.sweeps + sweep;
    using Word = unsigned long long;  // the type that atomicAdd takes; negative numbers wrap to the right sum
    atomicAdd(reinterpret_cast<Word*>(problem.magnetisation + at),
              static_cast<Word>(static_cast<int64_t>(m)));
    atomicAdd(reinterpret_cast<Word*>(problem.bonds + at), static_cast<Word>(static_cast<int64_t>(b)));
  }
};

// Updates the 32 sites of one word. `packed`: the chain's words [colour][row][group].
template <bool PERIODIC, bool METROPOLIS>
__device__ void update_word(const Lattice& lattice, uint32_t* packed, const uint32_t* planes,
                            const Stream& stream, int colour, int row, int group, bool observe,
                            Observed& observed) {
  using Sites = Classes<PERIODIC, METROPOLIS>;
  const int parity = (row + colour) & 1;
  const int64_t at = static_cast<int64_t>(row) * lattice.groups + group;
  const uint32_t* other = packed + (1 - colour) * lattice.words();
  uint32_t* own = packed + colour * lattice.words() + at;
  const Neighbours around = neighbours<PERIODIC>(lattice, other, row, group, parity);
  const uint32_t word = draw_spins(Sites(around, *own), planes, lattice.valid(parity, group), stream,
                                   static_cast<uint32_t>(8 * at));
  *own = word;
  if (observe) observed.add(lattice, around, word, parity, group);
}

__device__ Stream stream_of(const Ising& problem, int64_t chain, int64_t sweep, int colour) {
  const int64_t step = 2 * (problem.first_step + sweep) + colour;
  return Stream(problem.seed, problem.sample_ids[chain], static_cast<uint32_t>(step), kIsingStream);
}

// One block a chain; two blocks to a multiprocessor where that leaves registers enough.
template <bool PERIODIC, bool METROPOLIS>
__global__ void __launch_bounds__(kThreads, PERIODIC && !METROPOLIS ? 2 : 1)
    sweep_in_shared_memory(Ising problem) {
  using Planes = ThresholdPlanes<Classes<PERIODIC, METROPOLIS>>;
  DYNAMIC_SHARED(uint32_t, packed);
  SHARED_ARRAY(uint32_t, planes, Planes::kWords);
  const Lattice lattice(problem.height, problem.width);
  const int words = static_cast<int>(lattice.words());
  const int64_t chain = blockIdx.x;
  int8_t* spins = problem.spins + chain * lattice.height * lattice.width;
  const WordWalk start(threadIdx.x, blockDim.x, lattice.groups);
  Planes::fill(planes, problem.thresholds + 18 * chain);
  WordWalk at = start;
  for (int w = threadIdx.x; w < words; w += blockDim.x, at.next())
    pack(lattice, spins, packed, at.row, at.group);
  __syncthreads();
  for (int64_t sweep = 0; sweep < problem.sweeps; sweep++) {
    Observed observed;
    for (int colour = 0; colour < 2; colour++) {
      const Stream stream = stream_of(problem, chain, sweep, colour);
      const bool observe = colour == 1 && problem.magnetisation != nullptr;
      at = start;
      for (int w = threadIdx.x; w < words; w += blockDim.x, at.next()) {
        update_word<PERIODIC, METROPOLIS>(lattice, packed, planes, stream, colour, at.row, at.group, observe,
                                          observed);
      }
      __syncthreads();
    }
    if (problem.magnetisation != nullptr) observed.store(problem, chain, sweep);
  }
  at = start;
  for (int w = threadIdx.x; w < words; w += blockDim.x, at.next())
    unpack(lattice, packed, spins, at.row, at.group);
}

// Blocks of consecutive words, `blocks` to a chain.
struct Share {
  int64_t chain;
  int word;
  __device__ explicit Share(unsigned blocks)
      : chain(blockIdx.x / blocks), word(static_cast<int>(blockIdx.x % blocks * blockDim.x + threadIdx.x)) {}
};

template <bool PERIODIC, bool METROPOLIS>
__global__ void __launch_bounds__(kThreads)
    half_sweep(Ising problem, uint32_t* workspace, int blocks, int64_t sweep, int colour) {
  using Planes = ThresholdPlanes<Classes<PERIODIC, METROPOLIS>>;
  SHARED_ARRAY(uint32_t, planes, Planes::kWords);
  const Lattice lattice(problem.height, problem.width);
  const Share share(blocks);
  Planes::fill(planes, problem.thresholds + 18 * share.chain);
  __syncthreads();
  const bool observe = colour == 1 && problem.magnetisation != nullptr;
  Observed observed;
  if (share.word < lattice.words()) {
    const WordWalk at(share.word, 0, lattice.groups);
    update_word<PERIODIC, METROPOLIS>(lattice, workspace + share.chain * 2 * lattice.words(), planes,
                                      stream_of(problem, share.chain, sweep, colour), colour, at.row,
                                      at.group, observe, observed);
  }
  if (observe) observed.store(problem, share.chain, sweep);
}

template <bool PACK>
__global__ void __launch_bounds__(kThreads) convert(Ising problem, uint32_t* workspace, int blocks) {
  const Lattice lattice(problem.height, problem.width);
  const Share share(blocks);
  if (share.word >= lattice.words()) return;
  const WordWalk at(share.word, 0, lattice.groups);
  uint32_t* packed = workspace + share.chain * 2 * lattice.words();
  int8_t* spins = problem.spins + share.chain * lattice.height * lattice.width;
  if (PACK) {
    pack(lattice, spins, packed, at.row, at.group);
  } else {
    unpack(lattice, packed, spins, at.row, at.group);
  }
}

int64_t packed_bytes(const Ising& problem) { return 8 * Lattice(problem.height, problem.width).words(); }

// Dynamic shared memory that a block may have on this device, beside what the kernel declares.
int shared_memory_limit() {
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess)
    return 0;
  constexpr int kReserved = 1024, kPlanes = 33 * 20 * 4;
  return bytes - kReserved - kPlanes;
}

template <bool PERIODIC, bool METROPOLIS>
int run_in_shared_memory(const Ising& problem, cudaStream_t queue) {
  const auto kernel = sweep_in_shared_memory<PERIODIC, METROPOLIS>;
  const int bytes = static_cast<int>(packed_bytes(problem));
  const int error =
      static_cast<int>(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  if (error != 0) return error;
  const int64_t words = Lattice(problem.height, problem.width).words();
  const int threads = static_cast<int>(min((words + 31) / 32 * 32, static_cast<int64_t>(kThreads)));
  LAUNCH_KERNEL(kernel, dim3(static_cast<unsigned>(problem.chains)), dim3(threads), bytes, queue, problem);
  return static_cast<int>(cudaGetLastError());
}

template <bool PERIODIC, bool METROPOLIS>
int run_in_device_memory(const Ising& problem, uint32_t* workspace, cudaStream_t queue) {
  const int64_t words = Lattice(problem.height, problem.width).words();
  const int blocks = static_cast<int>((words + kThreads - 1) / kThreads);
  const dim3 grid(static_cast<unsigned>(problem.chains * blocks)), block(kThreads);
  LAUNCH_KERNEL(convert<true>, grid, block, 0, queue, problem, workspace, blocks);
  int error = static_cast<int>(cudaGetLastError());
  const auto kernel = half_sweep<PERIODIC, METROPOLIS>;
  for (int64_t half = 0; half < 2 * problem.sweeps && error == 0; half++) {
    LAUNCH_KERNEL(kernel, grid, block, 0, queue, problem, workspace, blocks, half / 2,
                  static_cast<int>(half % 2));
    error = static_cast<int>(cudaGetLastError());
  }
  if (error != 0) return error;
  LAUNCH_KERNEL(convert<false>, grid, block, 0, queue, problem, workspace, blocks);
  return static_cast<int>(cudaGetLastError());
}

template <bool PERIODIC, bool METROPOLIS>
int run(const Ising& problem, void* workspace, cudaStream_t queue) {
  if (workspace == nullptr) return run_in_shared_memory<PERIODIC, METROPOLIS>(problem, queue);
  return run_in_device_memory<PERIODIC, METROPOLIS>(problem, static_cast<uint32_t*>(workspace), queue);
}

}  // namespace

int64_t ising_workspace(const Ising& problem) {
  const int64_t chain = packed_bytes(problem);
  return chain <= shared_memory_limit() ? 0 : problem.chains * chain;
}

int ising(const Ising& problem, void* workspace, cudaStream_t queue) {
  if (problem.chains == 0 || problem.sweeps == 0) return 0;
  if (problem.periodic) {
    return (problem.metropolis ? run<true, true> : run<true, false>)(problem, workspace, queue);
  }
  return (problem.metropolis ? run<false, true> : run<false, false>)(problem, workspace, queue);
}

}  // namespace fastgen::cuda
