// Checkerboard half sweeps of a bit-packed Ising lattice. What they compute is told by
// fastgen/reference/ising.py.
#pragma once
#include <cstdint>

#include "fastgen/philox.h"
#include "fastgen/streams.h"
#include "isa.h"

namespace fastgen {

struct IsingShape {
  int64_t height, width;
  bool periodic;

  int64_t words() const { return ((width + 1) / 2 + 31) / 32; }  // of 32 sites of one colour, a row
  int64_t bonds() const {
    return periodic ? 2 * height * width : height * (width - 1) + width * (height - 1);
  }
};

// One chain, packed: for each colour the rows of the lattice between two halo rows that hold the neighbours
// of the first and the last, with slack for whole vectors behind.
struct IsingPlanes {
  static constexpr int64_t kSlack = 64;
  uint32_t* plane[2];  // row 0 of the lattice; row -1 and row `height` are the halo

  static int64_t plane_words(const IsingShape& s) { return 1 + (s.height + 2) * s.words() + kSlack; }
  IsingPlanes(const IsingShape& s, uint32_t* memory)
      : plane{memory + 1 + s.words(), memory + 1 + plane_words(s) + s.words()} {}
};

// What decides a spin, by its old value (0 down, 1 up) and the sum of its neighbours + 4: it is up if its
// random number of 32 bits is below up_below, which lies in 0 .. 2^32.
struct IsingRule {
  int64_t up_below[2][9];
};

struct IsingSums {
  int64_t up = 0, unequal = 0;  // spins up; bonds between unequal spins
};

// False if a spin is neither -1 nor +1.
FASTGEN_DECLARE_KERNEL(bool, ising_pack, (const IsingShape& shape, const int8_t* spins, IsingPlanes planes))
FASTGEN_DECLARE_KERNEL(void, ising_unpack, (const IsingShape& shape, IsingPlanes planes, int8_t* spins))
// Copies the first and last row of a colour to where their neighbours look for them (free edges: nothing
// there).
FASTGEN_DECLARE_KERNEL(void, ising_halo, (const IsingShape& shape, IsingPlanes planes, int colour))
// Updates the sites of a colour in rows first_row .. last_row - 1; own_spin says whether the rule depends on
// it.
FASTGEN_DECLARE_KERNEL(void, ising_half_sweep,
                       (const IsingShape& shape, const IsingRule& rule, bool own_spin, const Stream& stream,
                        IsingPlanes planes, int colour, int64_t first_row, int64_t last_row))
// Sweeps first .. last - 1 of a whole chain, halos included.
FASTGEN_DECLARE_KERNEL(void, ising_sweeps,
                       (const IsingShape& shape, const IsingRule& rule, bool own_spin, uint64_t seed,
                        int64_t sample_id, int64_t first, int64_t last, IsingPlanes planes))
FASTGEN_DECLARE_KERNEL(IsingSums, ising_observe,
                       (const IsingShape& shape, IsingPlanes planes, int64_t first_row, int64_t last_row))

}  // namespace fastgen
