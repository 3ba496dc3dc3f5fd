// The thresholds of a chain, in the reference's order of IEEE operations (fastgen/reference/ising.py).
#pragma once
#include <cmath>
#include <cstring>

#include "ising.h"

namespace fastgen {

// exp of x <= 0.
inline double ising_exp(double x) {
  x = x > -700.0 ? x : -700.0;
  const double n = std::nearbyint(x * 1.4426950408889634);
  const double r = (x - n * 0.6931471803691238) - n * 1.9082149292705877e-10;  // log(2) in two parts
  double term = 1.0;
  for (int k = 16; k > 0; --k) term = term * r * (1.0 / k) + 1.0;
  const int64_t bits = (static_cast<int64_t>(n) + 1023) << 52;
  double power;
  std::memcpy(&power, &bits, sizeof power);
  return term * power;
}

inline IsingRule ising_rule(double beta, double field, double coupling, bool metropolis) {
  IsingRule rule;
  for (int sum = -4; sum <= 4; ++sum) {
    const double gain = 2.0 * beta * (coupling * sum + field);  // log of P(up) / P(down)
    const double e = ising_exp(-std::abs(gain));
    double up[2];  // by old spin
    if (metropolis) {
      up[0] = gain >= 0 ? 1.0 : e;
      up[1] = 1.0 - (gain <= 0 ? 1.0 : e);
    } else {
      up[0] = up[1] = (gain >= 0 ? 1.0 : e) / (1.0 + e);
    }
    for (int old = 0; old < 2; ++old)
      rule.up_below[old][sum + 4] = static_cast<int64_t>(std::ceil(up[old] * 0x1p32));
  }
  return rule;
}

}  // namespace fastgen
