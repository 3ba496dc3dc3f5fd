// The spline of as many elements as a vector has lanes. The names are those of
// fastgen/reference/rq_spline.py.
#pragma once
#include "rq_spline.h"
#include "vector_math.h"

namespace fastgen::FASTGEN_ISA {

template <class V>
FASTGEN_INLINE V softclip(V raw, double bound) {
  return raw / (all<V>(1) + magnitude(raw) * all<V>(1 / bound));
}

template <class V>
FASTGEN_INLINE V softclip_derivative(V raw, double bound) {
  const V root = all<V>(1) / (all<V>(1) + magnitude(raw) * all<V>(1 / bound));
  return root * root;
}

// exp(x) for x <= 0, and the smallest normal power where it would be less: beside exp(0) = 1 nobody sees it.
template <class V>
FASTGEN_INLINE V exp_below_1(V x) {
  constexpr double kLowest = sizeof(x[0]) == 4 ? -87 : -708;
  return exp_within_range(x < all<V>(kLowest) ? all<V>(kLowest) : x);
}

// One axis of the box, divided into bins of size minimum + unit * power[j].
template <class V>
struct Axis {
  double low, high, minimum;
  V sum, unit;
  V* power;  // exp(raw - max raw), one vector a bin

  FASTGEN_MEMBER V size(V power_of_bin) const { return multiply_add(power_of_bin, unit, all<V>(minimum)); }
  // The lower edge of bin j, from the sum of the powers of the bins before it.
  FASTGEN_MEMBER V edge(int64_t j, V before) const {
    return multiply_add(before, unit, all<V>(low + static_cast<double>(j) * minimum));
  }
};

template <class V>
FASTGEN_INLINE Axis<V> divide(const RqSpline& task, const V* raw, V* power, double low, double high,
                              double min_share) {
  const int64_t bins = task.bins;
  V most = all<V>(-__builtin_inf());
  for (int64_t j = 0; j < bins; ++j) {
    V a = raw[j] * all<V>(task.scale);
    if (task.softclip) a = softclip(a, task.clip / 2);
    power[j] = a;
    most = most > a ? most : a;
  }
  V sum{};
  for (int64_t j = 0; j < bins; ++j) {
    power[j] = exp_below_1(power[j] - most);
    sum += power[j];
  }
  const double minimum = task.softclip ? 0 : (high - low) * min_share;
  const double rest = (high - low) - static_cast<double>(bins) * minimum;
  return {low, high, minimum, sum, all<V>(rest) / sum, power};
}

// What the search finds out about the bin of each lane.
template <class V>
struct Bin {
  V k, x_before, x_power, y_before, y_power, raw0, raw1;
};

// The column of raw derivatives that belongs to a knot, -1 where the tails fix the derivative at 1.
FASTGEN_INLINE int64_t derivative_column(const RqSpline& task, int64_t knot) {
  if (task.tails == SplineTails::none) return knot;
  if (task.tails == SplineTails::circular) return knot % task.bins;
  return knot == task.bins ? -1 : knot - 1;
}

template <class V>
FASTGEN_INLINE V raw_derivative(const RqSpline& task, const V* raw, int64_t knot) {
  const int64_t column = derivative_column(task, knot);
  return column < 0 ? V{} : raw[2 * task.bins + column];
}

template <bool kInverse, class V>
FASTGEN_INLINE Bin<V> find_bin(const RqSpline& task, V position, const V* raw, const Axis<V>& x_axis,
                               const Axis<V>& y_axis) {
  const Axis<V>& searched = kInverse ? y_axis : x_axis;
  V x_before{}, y_before{};
  Bin<V> bin{V{},
             V{},
             x_axis.power[0],
             V{},
             y_axis.power[0],
             raw_derivative(task, raw, 0),
             raw_derivative(task, raw, 1)};
  V knot = bin.raw1;
  for (int64_t j = 1; j < task.bins; ++j) {
    x_before += x_axis.power[j - 1], y_before += y_axis.power[j - 1];
    const V next = raw_derivative(task, raw, j + 1);
    const auto past = position >= searched.edge(j, kInverse ? y_before : x_before);
    bin.k = past ? all<V>(static_cast<double>(j)) : bin.k;
    bin.x_before = past ? x_before : bin.x_before;
    bin.y_before = past ? y_before : bin.y_before;
    bin.x_power = past ? x_axis.power[j] : bin.x_power;
    bin.y_power = past ? y_axis.power[j] : bin.y_power;
    bin.raw0 = past ? knot : bin.raw0;
    bin.raw1 = past ? next : bin.raw1;
    knot = next;
  }
  return bin;
}

// The derivative at a knot of the bins k, and what it is when differentiated after its raw value.
template <class V>
struct Slope {
  V value, derivative;
};

template <bool kDerivative, class V>
FASTGEN_INLINE Slope<V> slope_at(const RqSpline& task, V raw, V k, double fixed_bin) {
  Slope<V> slope{};
  if (task.softclip) {
    slope.value = exp(softclip(raw, task.clip));
    if (kDerivative) slope.derivative = slope.value * softclip_derivative(raw, task.clip);
  } else {
    slope.value = all<V>(task.min_derivative) + softplus(raw);
    if (kDerivative) slope.derivative = sigmoid(raw);
  }
  if (task.tails != SplineTails::linear) return slope;
  const auto fixed = k == all<V>(fixed_bin);
  return {fixed ? all<V>(1) : slope.value, fixed ? V{} : slope.derivative};
}

// Where in its bin the spline reaches the share eta of the bin's height; see the reference.
template <class V>
FASTGEN_INLINE V root_of(V s, V eta, V d0, V d1) {
  const V two_s = s + s;
  const V b = d0 - eta * (d0 + d1 - two_s);
  const V square = b - two_s * eta;
  const V root = square_root(square * square + two_s * two_s * (eta * (all<V>(1) - eta)));
  const auto low = b >= V{};
  return (low ? two_s * eta : root - b) / (low ? b + root : two_s - (b + b));
}

// An element's place in its bin and all that follows from it.
template <class V>
struct Point {
  V x_edge, width, y_edge, height, s, t, u, d0, d1;
  V denominator;  // s + (d0 + d1 - 2 s) u
  V numerator;    // height * numerator / denominator is the rise above y_edge
  V bend;         // slope = (s / denominator)^2 * bend
};

template <bool kInverse, class V>
FASTGEN_INLINE Point<V> place(V position, const Bin<V>& bin, const Axis<V>& x_axis, const Axis<V>& y_axis,
                              V d0, V d1) {
  Point<V> p;
  const V minimum_x = bin.k * all<V>(x_axis.minimum), minimum_y = bin.k * all<V>(y_axis.minimum);
  p.x_edge = multiply_add(bin.x_before, x_axis.unit, minimum_x + all<V>(x_axis.low));
  p.y_edge = multiply_add(bin.y_before, y_axis.unit, minimum_y + all<V>(y_axis.low));
  p.width = x_axis.size(bin.x_power), p.height = y_axis.size(bin.y_power);
  p.s = p.height / p.width, p.d0 = d0, p.d1 = d1;
  if constexpr (kInverse)
    p.t = clamp(root_of(p.s, clamp((position - p.y_edge) / p.height, 0, 1), d0, d1), 0, 1);
  else
    p.t = clamp((position - p.x_edge) / p.width, 0, 1);
  const V t = p.t, rest = all<V>(1) - t;
  p.u = t * rest;
  p.denominator = p.s + (d0 + d1 - (p.s + p.s)) * p.u;
  p.numerator = p.s * t * t + d0 * p.u;
  p.bend = d1 * t * t + (p.s + p.s) * p.u + d0 * rest * rest;
  return p;
}

// The raw parameters of a vector of elements, seen as a spline and a place on it.
template <bool kInverse, bool kDerivative, class V>
struct Element {
  FASTGEN_INLINE Element make(const RqSpline& task, V in, const V* raw, V* power) {
    Element e;
    e.x_axis = divide(task, raw, power, task.left, task.right, task.min_width);
    e.y_axis = divide(task, raw + task.bins, power + task.bins, task.bottom, task.top, task.min_height);
    const Axis<V>& searched = kInverse ? e.y_axis : e.x_axis;
    const V position = clamp(in, searched.low, searched.high);
    e.bin = find_bin<kInverse>(task, position, raw, e.x_axis, e.y_axis);
    e.slope0 = slope_at<kDerivative>(task, e.bin.raw0, e.bin.k, 0);
    e.slope1 = slope_at<kDerivative>(task, e.bin.raw1, e.bin.k, static_cast<double>(task.bins - 1));
    e.point = place<kInverse>(position, e.bin, e.x_axis, e.y_axis, e.slope0.value, e.slope1.value);
    return e;
  }

  Axis<V> x_axis, y_axis;
  Bin<V> bin;
  Slope<V> slope0, slope1;
  Point<V> point;
};

template <bool kInverse, class V>
FASTGEN_INLINE V transform(const RqSpline& task, V in, const V* raw, V* power, V& log_det) {
  const auto e = Element<kInverse, false, V>::make(task, in, raw, power);
  const Point<V>& p = e.point;
  const Axis<V>&from = kInverse ? e.y_axis : e.x_axis, &to = kInverse ? e.x_axis : e.y_axis;
  const V ratio = p.s / p.denominator;
  const V log_slope = log(ratio * p.bend * ratio);
  const V inside = kInverse ? p.x_edge + p.width * p.t : p.y_edge + p.height * (p.numerator / p.denominator);
  const auto outside = (in < all<V>(from.low)) | (in > all<V>(from.high));
  log_det = outside ? V{} : kInverse ? -log_slope : log_slope;
  return outside ? in : clamp(inside, to.low, to.high);
}

}  // namespace fastgen::FASTGEN_ISA
