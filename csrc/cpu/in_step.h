// Several vectors in step, as a policy of fastgen/math.h: each operation is done on all of them before the
// next one, so that the core, whose window holds only a few dozen operations, finds some that do not wait for
// each other.
#pragma once
#include "simd.h"

namespace fastgen::FASTGEN_ISA {

template <class Vector, int N>
struct Several {
  Vector v[N];
};

template <int N, class Vector, class Operation>
FASTGEN_INLINE Several<Vector, N> each(Operation operation) {
  Several<Vector, N> r;
#pragma GCC unroll 8
  for (int k = 0; k < N; ++k) r.v[k] = operation(k);
  return r;
}

#define FASTGEN_BINARY_IN_STEP(op)                                                                   \
  template <class Vector, int N>                                                                     \
  FASTGEN_INLINE Several<Vector, N> operator op(Several<Vector, N> a, const Several<Vector, N>& b) { \
    return each<N, Vector>([&](int k) { return a.v[k] op b.v[k]; });                                 \
  }
FASTGEN_BINARY_IN_STEP(+)
FASTGEN_BINARY_IN_STEP(-)
FASTGEN_BINARY_IN_STEP(*)
FASTGEN_BINARY_IN_STEP(^)
#undef FASTGEN_BINARY_IN_STEP

#define FASTGEN_SCALAR_IN_STEP(op)                                           \
  template <int N>                                                           \
  FASTGEN_INLINE Several<I32, N> operator op(Several<I32, N> a, int32_t b) { \
    return each<N, I32>([&](int k) { return a.v[k] op b; });                 \
  }
FASTGEN_SCALAR_IN_STEP(+)
FASTGEN_SCALAR_IN_STEP(-)
FASTGEN_SCALAR_IN_STEP(&)
FASTGEN_SCALAR_IN_STEP(|)
FASTGEN_SCALAR_IN_STEP(<<)
FASTGEN_SCALAR_IN_STEP(>>)
#undef FASTGEN_SCALAR_IN_STEP

template <int N>
struct InStep {
  using F = Several<F32, N>;
  using I = Several<I32, N>;

  FASTGEN_INLINE F constant(float x) {
    return each<N, F32>([=](int) { return broadcast(x); });
  }
  FASTGEN_INLINE I as_int(const F& x) {
    return each<N, I32>([&](int k) { return (I32)x.v[k]; });
  }
  FASTGEN_INLINE F as_float(const I& x) {
    return each<N, F32>([&](int k) { return (F32)x.v[k]; });
  }
  FASTGEN_INLINE F to_float(const I& x) {
    return each<N, F32>([&](int k) { return VectorLanes::to_float(x.v[k]); });
  }
  FASTGEN_INLINE I to_int(const F& x) {
    return each<N, I32>([&](int k) { return VectorLanes::to_int(x.v[k]); });
  }
  FASTGEN_INLINE F square_root(const F& x) {
    return each<N, F32>([&](int k) { return VectorLanes::square_root(x.v[k]); });
  }
  FASTGEN_INLINE F maximum(const F& a, const F& b) {
    return each<N, F32>([&](int k) { return VectorLanes::maximum(a.v[k], b.v[k]); });
  }
  FASTGEN_INLINE F select(const I& mask, const F& yes, const F& no) {
    return each<N, F32>([&](int k) { return VectorLanes::select(mask.v[k], yes.v[k], no.v[k]); });
  }
  FASTGEN_INLINE I odd_mask(const I& x) {
    return each<N, I32>([&](int k) { return VectorLanes::odd_mask(x.v[k]); });
  }
};

}  // namespace fastgen::FASTGEN_ISA
