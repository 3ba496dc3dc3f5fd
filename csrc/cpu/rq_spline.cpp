#include "rq_spline.h"

#include <new>

#include "rq_spline_lanes.h"
#include "transpose.h"

namespace fastgen::FASTGEN_ISA {
namespace {

constexpr int64_t kGroup = 1024;  // elements whose log-determinants wait to be added, at least
constexpr int kSums = 8;          // partial sums of a row's log-determinants

template <class V>
using Scalar = typename Lane<V>::Scalar;

// The lanes of one vector of elements, of which the last ones may be missing.
template <class V>
FASTGEN_INLINE V load_some(const Scalar<V>* p, int64_t count) {
  if (count >= kLanes<V>) return load<V>(p);
  V v{};
  memcpy(&v, p, count * sizeof(Scalar<V>));
  return v;
}

template <class V>
FASTGEN_INLINE void store_some(Scalar<V>* p, V v, int64_t count) {
  if (count >= kLanes<V>) return store(p, v);
  memcpy(p, &v, count * sizeof(Scalar<V>));
}

// Memory of one thread, in vectors.
template <class V>
struct Workspace {
  explicit Workspace(const RqSpline& task) {
    group = task.width < 1 || task.width > kGroup ? 1 : kGroup / task.width;
    const int64_t columns_size = padded<V>(task.parameters), rows_size = task.parameters + 1;
    const int64_t size = columns_size + 2 * task.bins + rows_size + group * task.width / kLanes<V> + 1;
    columns = static_cast<V*>(operator new(size * sizeof(V), std::align_val_t{sizeof(V)}));
    powers = columns + columns_size;
    V* after = powers + 2 * task.bins;
    for (int64_t i = 0; i < rows_size; ++i) after[i] = V{};
    rows = reinterpret_cast<Scalar<V>*>(after);
    log_det = reinterpret_cast<Scalar<V>*>(after + rows_size);
  }
  ~Workspace() { operator delete(columns, std::align_val_t{sizeof(V)}); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  V *columns, *powers;
  Scalar<V>* rows;  // parameters of elements that are not a whole vector
  int64_t group;    // rows that are worked off together
  Scalar<V>* log_det;
};

// Spreads the parameters of up to a vector of elements over the columns; `left` numbers may be read.
template <class V>
FASTGEN_INLINE void read_params(const RqSpline& task, const Scalar<V>* params, int64_t left,
                                Workspace<V>& w) {
  const int64_t count = task.parameters, read = (kLanes<V> - 1) * count + padded<V>(count);
  if (left >= read) return rows_to_columns(params, count, w.columns);
  memcpy(w.rows, params, smaller(left, kLanes<V> * count) * sizeof *params);
  rows_to_columns(w.rows, count, w.columns);
}

template <class V>
FASTGEN_INLINE void write_params(const RqSpline& task, Scalar<V>* params, int64_t left, Workspace<V>& w) {
  const int64_t count = task.parameters, written = (kLanes<V> - 1) * count + padded<V>(count);
  if (left >= written) return columns_to_rows(w.columns, count, params);
  columns_to_rows(w.columns, count, w.rows);
  memcpy(params, w.rows, smaller(left, kLanes<V> * count) * sizeof *params);
}

// Adds a row in an order that its width alone fixes.
template <class T>
T sum(const T* numbers, int64_t count) {
  T sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums)
    for (int j = 0; j < kSums; ++j) sums[j] += numbers[i + j];
  for (int j = 0; i + j < count; ++j) sums[j] += numbers[i + j];
  for (int half = kSums / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
  return sums[0];
}

template <bool kInverse, class V>
void forward(const RqSpline& task, int64_t first_row, int64_t last_row) {
  using T = Scalar<V>;
  const auto *x = static_cast<const T*>(task.x), *params = static_cast<const T*>(task.params);
  auto *y = static_cast<T*>(task.y), *log_det = static_cast<T*>(task.log_det);
  Workspace<V> w(task);
  const int64_t end = last_row * task.width;
  for (int64_t row = first_row; row < last_row; row += w.group) {
    const int64_t rows = smaller(w.group, last_row - row), begin = row * task.width;
    T* logs = task.sum_log_det ? w.log_det : log_det + begin;
    for (int64_t i = 0; i < rows * task.width; i += kLanes<V>) {
      const int64_t at = begin + i, count = rows * task.width - i;
      read_params(task, params + at * task.parameters, (end - at) * task.parameters, w);
      V log_slope;
      store_some(y + at,
                 transform<kInverse>(task, load_some<V>(x + at, count), w.columns, w.powers, log_slope),
                 count);
      store_some(logs + i, log_slope, count);
    }
    if (task.sum_log_det)
      for (int64_t i = 0; i < rows; ++i) log_det[row + i] = sum(logs + i * task.width, task.width);
  }
}

// Gradients of t, s, d0, d1 and of what the bin begins at, from those of the rise in shares of the bin's
// height (of_rise) and of log slope (of_log).
template <class V>
struct BinGradient {
  V in, x_edge, width, y_edge, height, d0, d1;
};

template <bool kInverse, class V>
FASTGEN_INLINE BinGradient<V> differentiate(const Point<V>& p, V grad_out, V grad_log) {
  const V t = p.t, rest = all<V>(1) - t, one_2u = all<V>(1) - (p.u + p.u);
  const V q = all<V>(1) / p.denominator, bend_inverse = all<V>(1) / p.bend,
          width_inverse = all<V>(1) / p.width;
  const V height_inverse = all<V>(1) / p.height;
  const V rise = p.numerator * q;
  const V rise_t = p.s * q * p.bend * q;
  const V rise_s = p.u * q * (p.d1 * t * t - p.d0 * rest * rest) * q;
  const V rise_d0 = p.u * q * (all<V>(1) - rise), rise_d1 = -p.u * q * rise;
  const V bend_t = (p.d1 * t - p.d0 * rest) + p.s * (rest - t);  // half of it
  const V two = all<V>(2), two_uq = two * p.u * q;
  const V log_t = two * (bend_t * bend_inverse - (p.d0 + p.d1 - two * p.s) * (rest - t) * q);
  const V log_s = two * (p.width * height_inverse + p.u * bend_inverse - one_2u * q);
  const V log_d0 = rest * rest * bend_inverse - two_uq, log_d1 = t * t * bend_inverse - two_uq;
  BinGradient<V> g;
  const V of_log = kInverse ? -grad_log : grad_log;
  // The inverse moves t so that the rise stays what it is: dt = -d(rise) / rise_t.
  const V of_rise = kInverse ? -(grad_out * p.width + of_log * log_t) / rise_t : grad_out * p.height;
  g.y_edge = kInverse ? of_rise * height_inverse : grad_out;
  g.x_edge = kInverse ? grad_out : -(of_rise * rise_t + of_log * log_t) * width_inverse;
  const V of_s = (of_rise * rise_s + of_log * log_s) * width_inverse;
  g.height = g.y_edge * rise + of_s;
  g.width = g.x_edge * t - of_s * p.s;
  g.d0 = of_rise * rise_d0 + of_log * log_d0;
  g.d1 = of_rise * rise_d1 + of_log * log_d1;
  g.in = kInverse ? -g.y_edge : -g.x_edge;
  return g;
}

// Turns raw[0 .. bins) into their gradients, given those of the edge and the size of the bin k.
template <class V>
FASTGEN_INLINE void axis_gradient(const RqSpline& task, const Axis<V>& axis, V k, V before, V power,
                                  V of_edge, V of_size, V* raw) {
  const V mean = (of_edge * before + of_size * power) / axis.sum;
  const V below = (of_edge - mean) * axis.unit * all<V>(task.scale);
  const V at = (of_size - mean) * axis.unit * all<V>(task.scale);
  const V above = -mean * axis.unit * all<V>(task.scale);
  for (int64_t j = 0; j < task.bins; ++j) {
    const V index = all<V>(static_cast<double>(j));
    V gradient = (index < k ? below : index == k ? at : above) * axis.power[j];
    if (task.softclip) gradient *= softclip_derivative(raw[j] * all<V>(task.scale), task.clip / 2);
    raw[j] = gradient;
  }
}

template <class V>
FASTGEN_INLINE void derivative_gradient(const RqSpline& task, V k, V of_raw0, V of_raw1, V* raw) {
  for (int64_t j = 0; j < task.parameters - 2 * task.bins; ++j) raw[j] = V{};
  for (int64_t knot = 0; knot <= task.bins; ++knot) {
    const int64_t column = derivative_column(task, knot);
    if (column < 0) continue;
    raw[column] += k == all<V>(static_cast<double>(knot)) ? of_raw0 : V{};
    raw[column] += k == all<V>(static_cast<double>(knot - 1)) ? of_raw1 : V{};
  }
}

// Returns the gradient of `in`; that of the parameters takes their place in w.columns.
template <bool kInverse, class V>
FASTGEN_INLINE V transform_backward(const RqSpline& task, V in, V grad_out, V grad_log, Workspace<V>& w) {
  const auto e = Element<kInverse, true, V>::make(task, in, w.columns, w.powers);
  const Axis<V>& from = kInverse ? e.y_axis : e.x_axis;
  const auto outside = (in < all<V>(from.low)) | (in > all<V>(from.high));
  const BinGradient<V> g =
      differentiate<kInverse>(e.point, outside ? V{} : grad_out, outside ? V{} : grad_log);
  V* raw = w.columns;
  const Bin<V>& bin = e.bin;
  axis_gradient(task, e.x_axis, bin.k, bin.x_before, bin.x_power, g.x_edge, g.width, raw);
  axis_gradient(task, e.y_axis, bin.k, bin.y_before, bin.y_power, g.y_edge, g.height, raw + task.bins);
  derivative_gradient(task, bin.k, g.d0 * e.slope0.derivative, g.d1 * e.slope1.derivative,
                      raw + 2 * task.bins);
  return outside ? grad_out : g.in;
}

template <bool kInverse, class V>
void backward(const RqSpline& task, int64_t first_row, int64_t last_row) {
  using T = Scalar<V>;
  const auto *x = static_cast<const T*>(task.x), *params = static_cast<const T*>(task.params);
  const auto *grad_y = static_cast<const T*>(task.grad_y),
             *grad_log = static_cast<const T*>(task.grad_log_det);
  auto *grad_x = static_cast<T*>(task.grad_x), *grad_params = static_cast<T*>(task.grad_params);
  Workspace<V> w(task);
  const int64_t end = last_row * task.width;
  for (int64_t row = first_row; row < last_row; row += w.group) {
    const int64_t rows = smaller(w.group, last_row - row), begin = row * task.width;
    if (task.sum_log_det)
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t d = 0; d < task.width; ++d) w.log_det[i * task.width + d] = grad_log[row + i];
    const T* logs = task.sum_log_det ? w.log_det : grad_log + begin;
    for (int64_t i = 0; i < rows * task.width; i += kLanes<V>) {
      const int64_t at = begin + i, count = rows * task.width - i, left = (end - at) * task.parameters;
      read_params(task, params + at * task.parameters, left, w);
      const V in = load_some<V>(x + at, count);
      const V of_out = load_some<V>(grad_y + at, count), of_log = load_some<V>(logs + i, count);
      store_some(grad_x + at, transform_backward<kInverse>(task, in, of_out, of_log, w), count);
      write_params(task, grad_params + at * task.parameters, left, w);
    }
  }
}

}  // namespace

void rq_spline(const RqSpline& task, int64_t first_row, int64_t last_row) {
  if (task.float64)
    (task.inverse ? forward<true, F64> : forward<false, F64>)(task, first_row, last_row);
  else
    (task.inverse ? forward<true, F32> : forward<false, F32>)(task, first_row, last_row);
}

void rq_spline_backward(const RqSpline& task, int64_t first_row, int64_t last_row) {
  if (task.float64)
    (task.inverse ? backward<true, F64> : backward<false, F64>)(task, first_row, last_row);
  else
    (task.inverse ? backward<true, F32> : backward<false, F32>)(task, first_row, last_row);
}

}  // namespace fastgen::FASTGEN_ISA
