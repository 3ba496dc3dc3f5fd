#include "affine_coupling.h"

#include "affine_rows.h"
#include "scale_maps.h"

namespace fastgen::FASTGEN_ISA {
namespace {

template <class V>
struct Transformed {
  V out, log;
};

template <ScaleMap map, class V>
FASTGEN_INLINE Transformed<V> transform(V in, V shift, V raw, const ScaleOptions<V>& options, bool inverse) {
  const Scaled<V> scaled = scale_of<map>(raw, options, inverse);
  return {inverse ? (in - shift) * scaled.factor : multiply_add(in, scaled.factor, shift), scaled.log};
}

template <class V>
struct Gradients {
  V in, shift, raw;
};

template <ScaleMap map, class V>
FASTGEN_INLINE Gradients<V> differentiate(V in, V shift, V raw, V grad, V grad_log,
                                          const ScaleOptions<V>& options, bool inverse) {
  const ScaledSlope<V> scaled = scale_and_slope<map>(raw, options, inverse);
  const V grad_in = grad * scaled.factor;
  return {grad_in, inverse ? -grad_in : grad,
          multiply_add(grad_in, inverse ? in - shift : in, grad_log) * scaled.slope};
}

// Nothing that costs a vector of elements a decision: of fewer instructions the processor looks further
// ahead, and memory is kept busy.
template <class S>
bool is_plain(const AffineCoupling& task) {
  return !task.mask && task.run > 1 && ScaleOptions<typename Stored<S>::Vector>(task.clamp, 0).within_range;
}

template <class S, ScaleMap map, bool plain>
void transform_rows(const AffineCoupling& task, int64_t first_row, int64_t last_row) {
  if (plain && !is_plain<S>(task)) __builtin_unreachable();
  using V = typename Stored<S>::Vector;
  constexpr bool as_computed = sizeof(S) == sizeof(V{}[0]);
  const ScaleOptions<V> options(task.clamp, task.min_scale);
  const Parameters<S> parameters(task);
  const uint8_t* const mask = task.mask;
  const bool inverse = task.inverse, past_caches = task.past_caches;
  for (int64_t r = first_row; r < last_row; ++r) {
    const S* x = static_cast<const S*>(task.x) + r * task.width;
    S* y = static_cast<S*>(task.y) + r * task.width;
    const S* row = static_cast<const S*>(task.params) + r * 2 * task.count;
    copy_around(task, x, y);
    x += task.begin, y += task.begin;
    RowSum<V> log_det;
    parameters.for_each_vector(task.count,
                               [&](int64_t i, int64_t place, int n) __attribute__((always_inline)) {
                                 V shift, raw;
                                 parameters.load(row, place, n, shift, raw);
                                 parameters.expect(row, place), __builtin_prefetch(x + i + parameters.kAhead);
                                 const V in = Stored<S>::load(x + i, n);
                                 auto [out, log] = transform<map>(in, shift, raw, options, inverse);
                                 if (mask) {
                                   const Int<V> passes = load_mask<V>(mask + i, n);
                                   out = passes ? in : out, log = passes ? V{} : log;
                                 }
                                 if (n < Lane<V>::kCount) log = first_lanes<V>(n) ? log : V{};
                                 log_det.add(log);
                                 if (as_computed && past_caches && n == Lane<V>::kCount)
                                   stream(y + i, out);
                                 else
                                   Stored<S>::store(y + i, out, n);
                               });
    Stored<S>::store(static_cast<S*>(task.log_det) + r, all<V>(log_det.total()), 1);
  }
  if (past_caches) stream_fence();
}

template <class S, ScaleMap map>
void differentiate_rows(const AffineCoupling& task, int64_t first_row, int64_t last_row) {
  using V = typename Stored<S>::Vector;
  const ScaleOptions<V> options(task.clamp, task.min_scale);
  const Parameters<S> parameters(task);
  const bool inverse = task.inverse;
  for (int64_t r = first_row; r < last_row; ++r) {
    const S* x = static_cast<const S*>(task.x) + r * task.width;
    const S* grad_y = static_cast<const S*>(task.grad_y) + r * task.width;
    S* grad_x = static_cast<S*>(task.grad_x) + r * task.width;
    const S* row = static_cast<const S*>(task.params) + r * 2 * task.count;
    S* grad_row = static_cast<S*>(task.grad_params) + r * 2 * task.count;
    const V grad_log = all<V>(Stored<S>::load(static_cast<const S*>(task.grad_log_det) + r, 1)[0]);
    copy_around(task, grad_y, grad_x);
    parameters.for_each_vector(task.count,
                               [&](int64_t i, int64_t place, int n) __attribute__((always_inline)) {
                                 V shift, raw;
                                 parameters.load(row, place, n, shift, raw);
                                 const V in = Stored<S>::load(x + task.begin + i, n);
                                 const V grad = Stored<S>::load(grad_y + task.begin + i, n);
                                 auto [grad_in, grad_shift, grad_raw] =
                                     differentiate<map>(in, shift, raw, grad, grad_log, options, inverse);
                                 if (task.mask) {
                                   const Int<V> passes = load_mask<V>(task.mask + i, n);
                                   grad_in = passes ? grad : grad_in;
                                   grad_shift = passes ? V{} : grad_shift, grad_raw = passes ? V{} : grad_raw;
                                 }
                                 Stored<S>::store(grad_x + task.begin + i, grad_in, n);
                                 parameters.store(grad_row, place, n, grad_shift, grad_raw);
                               });
  }
}

constexpr int kPlaces = 256;  // elements side by side, of rows too short for vectors of their own

template <class S>
bool is_short(const AffineCoupling& task) {
  return task.count < 2 * Lane<typename Stored<S>::Vector>::kCount && task.count > 0;
}

// Where the parameters of each element of a short row lie.
struct ShortRow {
  int64_t shift[kPlaces], raw[kPlaces];
  explicit ShortRow(const AffineCoupling& task) {
    for (int64_t i = 0; i < task.count; ++i) {
      const int64_t first = i / task.run * 2 * task.run + i % task.run;
      shift[i] = task.shift_first ? first : first + task.run;
      raw[i] = task.shift_first ? first + task.run : first;
    }
  }
};

// What short rows hold, side by side.
template <class S>
struct Places {
  alignas(64) S in[kPlaces]{}, shift[kPlaces]{}, raw[kPlaces]{};

  void gather(const AffineCoupling& task, const ShortRow& at, int64_t first, int64_t last) {
    int64_t k = 0;
    for (int64_t r = first; r < last; ++r) {
      const S* x = static_cast<const S*>(task.x) + r * task.width + task.begin;
      const S* row = static_cast<const S*>(task.params) + r * 2 * task.count;
      for (int64_t i = 0; i < task.count; ++i, ++k)
        in[k] = x[i], shift[k] = row[at.shift[i]], raw[k] = row[at.raw[i]];
    }
  }
};

template <class S, ScaleMap map>
void transform_short_rows(const AffineCoupling& task, int64_t first_row, int64_t last_row) {
  using V = typename Stored<S>::Vector;
  const ScaleOptions<V> options(task.clamp, task.min_scale);
  const ShortRow at(task);
  Places<S> places;
  alignas(64) S out[kPlaces], log[kPlaces];
  const int64_t count = task.count, together = kPlaces / count;
  for (int64_t r = first_row; r < last_row; r += together) {
    const int64_t end = smaller(r + together, last_row);
    places.gather(task, at, r, end);
    for (int64_t k = 0; k < (end - r) * count; k += Lane<V>::kCount) {
      const auto [y, log_scale] = transform<map>(load<V>(places.in + k), load<V>(places.shift + k),
                                                 load<V>(places.raw + k), options, task.inverse);
      store(out + k, y), store(log + k, log_scale);
    }
    int64_t k = 0;
    for (int64_t row = r; row < end; ++row) {
      S* y = static_cast<S*>(task.y) + row * task.width;
      copy_around(task, static_cast<const S*>(task.x) + row * task.width, y);
      double total = 0;
      for (int64_t i = 0; i < count; ++i, ++k) {
        const bool passes = task.mask && task.mask[i];
        y[task.begin + i] = passes ? places.in[k] : out[k];
        total += passes ? S{} : log[k];
      }
      static_cast<S*>(task.log_det)[row] = static_cast<S>(total);
    }
  }
}

template <class S, ScaleMap map>
void differentiate_short_rows(const AffineCoupling& task, int64_t first_row, int64_t last_row) {
  using V = typename Stored<S>::Vector;
  const ScaleOptions<V> options(task.clamp, task.min_scale);
  const ShortRow at(task);
  Places<S> places;
  alignas(64) S grad[kPlaces]{}, grad_log[kPlaces]{}, grad_in[kPlaces], grad_shift[kPlaces],
      grad_raw[kPlaces];
  const int64_t count = task.count, together = kPlaces / count;
  const S *grad_y = static_cast<const S*>(task.grad_y), *logs = static_cast<const S*>(task.grad_log_det);
  for (int64_t r = first_row; r < last_row; r += together) {
    const int64_t end = smaller(r + together, last_row);
    places.gather(task, at, r, end);
    int64_t k = 0;
    for (int64_t row = r; row < end; ++row)
      for (int64_t i = 0; i < count; ++i, ++k)
        grad[k] = grad_y[row * task.width + task.begin + i], grad_log[k] = logs[row];
    for (k = 0; k < (end - r) * count; k += Lane<V>::kCount) {
      const auto grads =
          differentiate<map>(load<V>(places.in + k), load<V>(places.shift + k), load<V>(places.raw + k),
                             load<V>(grad + k), load<V>(grad_log + k), options, task.inverse);
      store(grad_in + k, grads.in), store(grad_shift + k, grads.shift), store(grad_raw + k, grads.raw);
    }
    k = 0;
    for (int64_t row = r; row < end; ++row) {
      S* grad_x = static_cast<S*>(task.grad_x) + row * task.width;
      S* grad_row = static_cast<S*>(task.grad_params) + row * 2 * count;
      copy_around(task, grad_y + row * task.width, grad_x);
      for (int64_t i = 0; i < count; ++i, ++k) {
        const bool passes = task.mask && task.mask[i];
        grad_x[task.begin + i] = passes ? grad[k] : grad_in[k];
        grad_row[at.shift[i]] = passes ? S{} : grad_shift[k],
        grad_row[at.raw[i]] = passes ? S{} : grad_raw[k];
      }
    }
  }
}

using Rows = void (*)(const AffineCoupling&, int64_t, int64_t);

template <class S, ScaleMap map>
Rows rows_of(const AffineCoupling& task, bool backward) {
  if constexpr (sizeof(S) >= 4)
    if (is_short<S>(task)) return backward ? differentiate_short_rows<S, map> : transform_short_rows<S, map>;
  if (backward) return differentiate_rows<S, map>;
  return is_plain<S>(task) ? transform_rows<S, map, true> : transform_rows<S, map, false>;
}

template <class S>
Rows rows_of(const AffineCoupling& task, bool backward) {
#define FASTGEN_CASE(name) \
  case ScaleMap::name:     \
    return rows_of<S, ScaleMap::name>(task, backward);
  switch (task.map) {
    FASTGEN_CASE(exp)
    FASTGEN_CASE(tanh)
    FASTGEN_CASE(atan)
    FASTGEN_CASE(softclip)
    FASTGEN_CASE(sigmoid)
    FASTGEN_CASE(softplus)
    FASTGEN_CASE(reciprocal_sigmoid)
  }
#undef FASTGEN_CASE
  return nullptr;
}

Rows rows_of(const AffineCoupling& task, bool backward) {
  if (task.storage == Storage::float64) return rows_of<double>(task, backward);
  if (task.storage == Storage::bfloat16) return rows_of<Bfloat16>(task, backward);
  return rows_of<float>(task, backward);
}

}  // namespace

void affine_coupling(const AffineCoupling& task, int64_t first_row, int64_t last_row) {
  rows_of(task, false)(task, first_row, last_row);
}

void affine_coupling_backward(const AffineCoupling& task, int64_t first_row, int64_t last_row) {
  rows_of(task, true)(task, first_row, last_row);
}

}  // namespace fastgen::FASTGEN_ISA
