// Neighbours of the sites of one colour, 32 a word.
//
// Site k of colour c in row i lies in column 2 k + s with s = (i + c) % 2. Up, down and one of left and right
// are site k of the other colour in rows i - 1, i + 1 and i; the fourth, `side`, is site k - 1 (s = 0) or k +
// 1 (s = 1) of the other colour in row i.
#pragma once
#include "ising.h"

namespace fastgen::FASTGEN_ISA {

// All bits from position n on; n may be negative or beyond the word.
FASTGEN_HD uint32_t bits_from(int64_t n) { return n <= 0 ? ~0u : n >= 32 ? 0u : ~0u << n; }

struct IsingRow {
  const IsingShape& shape;
  const uint32_t* other;  // this row of the other colour
  int64_t row;
  int shift;  // s above

  FASTGEN_MEMBER IsingRow(const IsingShape& shape_, const IsingPlanes& planes, int colour, int64_t row_)
      : shape(shape_),
        other(planes.plane[1 - colour] + row_ * shape_.words()),
        row(row_),
        shift(static_cast<int>((row_ + colour) & 1)) {}

  FASTGEN_MEMBER int64_t sites() const { return (shape.width + 1 - shift) / 2; }
  FASTGEN_MEMBER uint32_t valid(int64_t w) const { return ~bits_from(sites() - 32 * w); }
  FASTGEN_MEMBER bool full() const { return sites() == 32 * shape.words(); }

  // Words first .. last - 1 of the fourth neighbours.
  FASTGEN_MEMBER void side(int64_t first, int64_t last, uint32_t* out) const {
    const int64_t words = shape.words(), end = shape.width / 2 - 1;  // the last site of a periodic row
    if (shift == 0) {
      // The word before the first is another row's or the slack in front: its bit is replaced by the wrapped
      // one.
      for (int64_t w = first; w < last; ++w) out[w - first] = other[w] << 1 | other[w - 1] >> 31;
      const uint32_t wrapped = shape.periodic ? other[end / 32] >> (end % 32) & 1 : 0;
      if (first == 0) out[0] = other[0] << 1 | wrapped;
    } else {
      for (int64_t w = first; w < last; ++w) out[w - first] = other[w] >> 1 | other[w + 1] << 31;
      if (last == words) out[words - 1 - first] = other[words - 1] >> 1;
      const int64_t w = end / 32;
      if (shape.periodic && first <= w && w < last) out[w - first] |= (other[0] & 1) << (end % 32);
    }
  }

  // Free edges: which sites lack the neighbour.
  FASTGEN_MEMBER uint32_t missing_side(int64_t w) const {
    if (shape.periodic) return 0;
    return shift == 0 ? (w == 0 ? 1u : 0u) : bits_from((shape.width - 1) / 2 - 32 * w);
  }
  FASTGEN_MEMBER uint32_t missing_same(int64_t w) const {
    return shape.periodic || shift == 1 ? 0 : bits_from(shape.width / 2 - 32 * w);
  }
  FASTGEN_MEMBER uint32_t missing_up() const { return shape.periodic || row > 0 ? 0 : ~0u; }
  FASTGEN_MEMBER uint32_t missing_down() const { return shape.periodic || row + 1 < shape.height ? 0 : ~0u; }
};

}  // namespace fastgen::FASTGEN_ISA
