// Prints, for each function of vector_math.h, the largest error in units in the last place against long
// double (inf if infinities or NaN are not where they should be), the argument where it is, and whether -0
// stays -0.
#include "cpu/vector_math.h"

#include <bit>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

namespace {

using namespace fastgen::FASTGEN_ISA;
using Exact = long double;

Exact sigmoid_of(Exact x) { return 1 / (1 + expl(-x)); }
Exact softplus_of(Exact x) { return x > 0 ? x + log1pl(expl(-x)) : log1pl(expl(x)); }

// The error of `found` in units in the last place of the nearest representable number.
template <class S>
double error_in_ulp(S found, Exact wanted) {
  const S nearest = static_cast<S>(wanted);
  if (std::isnan(nearest) || std::isinf(nearest) || !std::isfinite(found))
    return (std::isnan(nearest) && std::isnan(found)) || nearest == found ? 0 : HUGE_VAL;
  const S size = std::fabs(nearest);
  const Exact ulp =
      std::fmax(static_cast<Exact>(std::nextafter(size, std::numeric_limits<S>::infinity())) - size,
                static_cast<Exact>(std::numeric_limits<S>::denorm_min()));
  return static_cast<double>(fabsl(found - wanted) / ulp);
}

// Random bits (every exponent alike), and numbers of everyday size.
template <class S>
std::vector<S> arguments() {
  std::mt19937_64 words(1);
  std::vector<S> x;
  for (int i = 0; i < 50000; ++i) {
    if constexpr (sizeof(S) == 4)
      x.push_back(std::bit_cast<float>(static_cast<uint32_t>(words())));
    else
      x.push_back(std::bit_cast<double>(words()));
    for (double scale : {0.01, 1.0, 10.0, sizeof(S) == 4 ? 110.0 : 760.0})
      x.push_back(static_cast<S>(scale * (2 * 0x1p-64 * words() - 1)));
    x.push_back(static_cast<S>(1 + 0.5 * (2 * 0x1p-64 * words() - 1)));
  }
  const S inf = std::numeric_limits<S>::infinity(), most = std::numeric_limits<S>::max();
  for (S edge : {S(0), inf, most, std::numeric_limits<S>::min(), std::numeric_limits<S>::denorm_min(), S(1)})
    x.insert(x.end(), {edge, -edge});
  x.push_back(std::numeric_limits<S>::quiet_NaN());
  return x;
}

template <class V, class Function>
void measure(const char* name, Function function, Exact (*exact)(Exact)) {
  using S = typename Lane<V>::Scalar;
  double worst = 0;
  S where = 0;
  for (S x : arguments<S>()) {
    const double error = error_in_ulp<S>(function(V{} + x)[Lane<V>::kCount - 1], exact(x));
    if (error > worst) worst = error, where = x;
  }
  const bool zero_kept = exact(0) != 0 || std::signbit(function(-V{})[0]);
  std::printf("%s %s %.3f %a %d\n", sizeof(S) == 4 ? "float" : "double", name, worst, where, zero_kept);
}

template <class V>
void measure_all() {
  measure<V>("exp", [](V x) { return exp(x); }, expl);
  measure<V>("expm1", [](V x) { return expm1(x); }, expm1l);
  measure<V>("log", [](V x) { return log(x); }, logl);
  measure<V>("log1p", [](V x) { return log1p(x); }, log1pl);
  measure<V>("tanh", [](V x) { return tanh(x); }, tanhl);
  measure<V>("sigmoid", [](V x) { return sigmoid(x); }, sigmoid_of);
  measure<V>("softplus", [](V x) { return softplus(x); }, softplus_of);
  measure<V>("atan", [](V x) { return atan(x); }, atanl);
}

}  // namespace

int main() {
  measure_all<F32>();
  measure_all<F64>();
}
