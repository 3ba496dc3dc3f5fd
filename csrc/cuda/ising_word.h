// A bit-packed checkerboard lattice, and the update of 32 of its sites at once.
//
// Site (i, j) has colour (i + j) % 2. Bit k % 32 of word [colour][i][k / 32] is the spin (1: up) of the k-th
// site of the colour in row i, which stands in column 2 * k + (i + colour) % 2. Bits beyond the row are 0.
#pragma once
#include "cuda_compat.h"
#include "fastgen/philox.h"

namespace fastgen::cuda {

struct Lattice {
  int height, width, groups;  // groups: words a row has of each colour

  __host__ __device__ Lattice(int height_, int width_)
      : height(height_), width(width_), groups(((width_ + 1) / 2 + 31) / 32) {}
  __host__ __device__ int64_t words() const {
    return static_cast<int64_t>(height) * groups;
  }  // of one colour

  // The bits of a word that are sites below the `count`-th of their row.
  __device__ static uint32_t below(int count, int group) {
    const int bits = count - 32 * group;
    return bits >= 32 ? ~0u : bits <= 0 ? 0u : (1u << bits) - 1;
  }
  // Sites in a row of those in columns `parity`, `parity` + 2, ...
  __device__ int sites(int parity) const { return (width + 1 - parity) >> 1; }
  __device__ uint32_t valid(int parity, int group) const { return below(sites(parity), group); }
};

// The four neighbours of the sites of a word: which are up, and which do not exist (never both).
struct Neighbours {
  uint32_t up[4], missing[4];
};

// Of the sites of the word `group` of row i; `other` has the chain's words of the other colour.
template <bool PERIODIC>
__device__ Neighbours neighbours(const Lattice& lattice, const uint32_t* other, int i, int group,
                                 int parity) {
  const int groups = lattice.groups, last_row = lattice.height - 1, others = lattice.sites(1 - parity);
  const uint32_t* row = other + static_cast<int64_t>(i) * groups;
  const uint32_t* above = other + static_cast<int64_t>(i == 0 ? last_row : i - 1) * groups;
  const uint32_t* below = other + static_cast<int64_t>(i == last_row ? 0 : i + 1) * groups;
  // In the same row, site k has the other colour's site k on one side, and k - 1 (parity 0) or k + 1 on the
  // other.
  const uint32_t beside = row[group];
  uint32_t shifted;
  if (parity == 0) {
    const int end = (others - 1) & 31;  // where the row's last site is in its word
    const uint32_t before = group > 0 ? row[group - 1] : PERIODIC ? row[groups - 1] << (31 - end) : 0u;
    shifted = __funnelshift_l(before, beside, 1);
  } else {
    shifted = __funnelshift_r(beside, group + 1 < groups ? row[group + 1] : 0u, 1);
    if (PERIODIC && group + 1 == groups) shifted |= (row[0] & 1) << ((others - 1) & 31);
  }
  Neighbours result{{above[group], below[group], beside, shifted}, {0, 0, 0, 0}};
  if (PERIODIC) return result;
  result.missing[0] = i == 0 ? ~0u : 0u;
  result.missing[1] = i == last_row ? ~0u : 0u;
  result.missing[2] = ~Lattice::below(others, group);
  result.missing[3] = parity == 0 ? (group == 0 ? 1u : 0u) : ~Lattice::below(others - 1, group);
#pragma unroll
  for (int k = 0; k < 4; k++) result.up[k] &= ~result.missing[k];
  return result;
}

// exactly[n]: the bits that are set in n of the four words.
struct Counts {
  uint32_t exactly[5];
};
__device__ inline Counts count(const uint32_t (&w)[4]) {
  const uint32_t odd01 = w[0] ^ w[1], odd23 = w[2] ^ w[3], both01 = w[0] & w[1], both23 = w[2] & w[3];
  const uint32_t odd = odd01 ^ odd23, none = ~(w[0] | w[1] | w[2] | w[3]), all = both01 & both23;
  return {{none, odd & ~(both01 | both23), ~(odd | none | all), odd & (both01 | both23), all}};
}

// What decides the threshold of a site: the sum of its neighbours and, for Metropolis, its old spin. A
// periodic lattice knows the sums -4, -2, 0, 2, 4 alone; at free edges neighbours are missing and all nine
// come up.
template <bool PERIODIC, bool METROPOLIS>
struct Classes {
  static constexpr int kSums = PERIODIC ? 5 : 9, kCount = METROPOLIS ? 2 * kSums : kSums;
  uint32_t members[kCount];  // the sites of each class; [old spin up][sum] in order

  __device__ static int table_index(int which) {  // into a chain's thresholds (2, 9)
    return which / kSums * 9 + which % kSums * (PERIODIC ? 2 : 1);
  }

  __device__ Classes(const Neighbours& around, uint32_t old) {
    uint32_t sum[kSums] = {};
    const Counts up = count(around.up);
    if (PERIODIC) {
#pragma unroll
      for (int u = 0; u < 5; u++) sum[u] = up.exactly[u];
    } else {  // sum + 4 counts 2 for a neighbour that is up and 1 for one that is missing
      const Counts missing = count(around.missing);
#pragma unroll
      for (int u = 0; u < 5; u++) {
#pragma unroll
        for (int m = 0; m < 5; m++) {
          if (u + m < 5) sum[(2 * u + m) % kSums] |= up.exactly[u] & missing.exactly[m];
        }
      }
    }
#pragma unroll
    for (int s = 0; s < kSums; s++) {
      members[s] = METROPOLIS ? sum[s] & ~old : sum[s];
      if (METROPOLIS) members[kCount - kSums + s] = sum[s] & old;
    }
  }

  // The sites of the classes for which `flags` is ~0.
  __device__ uint32_t select(const uint32_t* flags) const {
    uint32_t result = 0;
#pragma unroll
    for (int c = 0; c < kCount; c++) result |= members[c] & flags[c];
    return result;
  }
};

// The thresholds of a chain as bit planes: row q, for q < 32, has bit 31 - q of each class's threshold,
// spread over a word; row 32 tells which thresholds are 2^32, so that the class is always up. Rows are padded
// to whole 16 bytes.
template <class CLASSES>
struct ThresholdPlanes {
  static constexpr int kStride = (CLASSES::kCount + 3) / 4 * 4, kWords = 33 * kStride;

  __device__ static void fill(uint32_t* planes, const int64_t* thresholds) {
    for (int k = threadIdx.x; k < kWords; k += blockDim.x) {
      const int q = k / kStride, which = k % kStride;
      if (which >= CLASSES::kCount) continue;
      const uint64_t threshold = static_cast<uint64_t>(thresholds[CLASSES::table_index(which)]);
      planes[k] = (q == 32 ? threshold >> 32 : threshold >> (31 - q) & 1) != 0 ? ~0u : 0u;
    }
  }
};

// Draws the new spins of the sites `valid`: up where the site's random number is below its threshold. Numbers
// come as bit planes, the highest first, four to a Philox block, and drawing stops when the planes so far
// decide every site.
template <class CLASSES>
__device__ uint32_t draw_spins(const CLASSES& classes, const uint32_t* planes, uint32_t valid,
                               const Stream& stream, uint32_t first_block) {
  constexpr int kStride = ThresholdPlanes<CLASSES>::kStride;
  uint32_t up = classes.select(planes + 32 * kStride) & valid;
  uint32_t open = valid & ~up;
#pragma unroll 1
  for (int block = 0; block < 8 && open != 0; block++) {
    const Words random = stream.block(first_block + block);
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const uint32_t threshold = classes.select(planes + (4 * block + k) * kStride);
      up |= open & threshold & ~random.w[k];
      open &= ~(threshold ^ random.w[k]);
    }
  }
  return up;
}

}  // namespace fastgen::cuda
