// What lies in a row of an affine coupling: elements, their parameters in either layout, a mask, sums.
#pragma once
#include "affine_coupling.h"
#include "stored.h"

namespace fastgen::FASTGEN_ISA {

// All ones in the first n lanes.
template <class V>
FASTGEN_INLINE Int<V> first_lanes(int n) {
  using Scalar = decltype(Int<V>{}[0] + 0);
  Int<V> lane;
  for (int i = 0; i < Lane<V>::kCount; ++i) lane[i] = i;
  return lane < static_cast<Scalar>(n);
}

// Adds vectors lane by lane and, every so often, the lanes one after the other to a double.
template <class V>
class RowSum {
 public:
  inline __attribute__((always_inline)) void add(V v) {
    lanes_ += v;
    if (++pending_ == kPending) flush();
  }
  double total() {
    flush();
    return total_;
  }

 private:
  static constexpr int kPending = 64;
  void flush() {
    for (int i = 0; i < Lane<V>::kCount; ++i) total_ += lanes_[i];
    lanes_ = V{}, pending_ = 0;
  }
  V lanes_{};
  int pending_ = 0;
  double total_ = 0;
};

template <class V>
FASTGEN_INLINE void separate(V a, V b, V& even, V& odd) {
  if constexpr (Lane<V>::kCount == 16) {
    even = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    odd = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  } else if constexpr (Lane<V>::kCount == 8) {
    even = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
    odd = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
  } else if constexpr (Lane<V>::kCount == 4) {
    even = __builtin_shufflevector(a, b, 0, 2, 4, 6), odd = __builtin_shufflevector(a, b, 1, 3, 5, 7);
  } else {
    even = __builtin_shufflevector(a, b, 0, 2), odd = __builtin_shufflevector(a, b, 1, 3);
  }
}

template <class V>
FASTGEN_INLINE void join(V even, V odd, V& a, V& b) {
  if constexpr (Lane<V>::kCount == 16) {
    a = __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    b = __builtin_shufflevector(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  } else if constexpr (Lane<V>::kCount == 8) {
    a = __builtin_shufflevector(even, odd, 0, 8, 1, 9, 2, 10, 3, 11);
    b = __builtin_shufflevector(even, odd, 4, 12, 5, 13, 6, 14, 7, 15);
  } else if constexpr (Lane<V>::kCount == 4) {
    a = __builtin_shufflevector(even, odd, 0, 4, 1, 5), b = __builtin_shufflevector(even, odd, 2, 6, 3, 7);
  } else {
    a = __builtin_shufflevector(even, odd, 0, 2), b = __builtin_shufflevector(even, odd, 1, 3);
  }
}

// Where the two parameters of an element lie in a row, and how vectors of them get in and out.
template <class S>
class Parameters {
 public:
  using V = typename Stored<S>::Vector;
  static constexpr int kCount = Lane<V>::kCount;
  static constexpr int64_t kAhead = 2048 / sizeof(S);  // of what is fetched before it is read

  explicit Parameters(const AffineCoupling& task)
      : run_(task.run),
        shift_at_(task.shift_first ? 0 : task.run),
        raw_at_(task.shift_first ? task.run : 0),
        in_turns_(task.run == 1),
        shift_first_(task.shift_first) {}

  // n elements from `place` on, counted as in Places.
  inline __attribute__((always_inline)) void load(const S* row, int64_t place, int n, V& shift,
                                                  V& raw) const {
    if (in_turns_) {
      V first, second;
      separate(Stored<S>::load(row + place, low(n)), Stored<S>::load(row + place + kCount, high(n)), first,
               second);
      shift = shift_first_ ? first : second, raw = shift_first_ ? second : first;
    } else {
      shift = Stored<S>::load(row + place + shift_at_, n), raw = Stored<S>::load(row + place + raw_at_, n);
    }
  }
  // Rows larger than a page leave the processor's own guess behind at each page's end.
  inline __attribute__((always_inline)) void expect(const S* row, int64_t place) const {
    __builtin_prefetch(row + place + kAhead), __builtin_prefetch(row + place + run_ + kAhead);
  }
  inline __attribute__((always_inline)) void store(S* row, int64_t place, int n, V shift, V raw) const {
    if (in_turns_) {
      V a, b;
      join(shift_first_ ? shift : raw, shift_first_ ? raw : shift, a, b);
      Stored<S>::store(row + place, a, low(n)), Stored<S>::store(row + place + kCount, b, high(n));
    } else {
      Stored<S>::store(row + place + shift_at_, shift, n), Stored<S>::store(row + place + raw_at_, raw, n);
    }
  }

  // body(first element, place of its parameters, elements) for all elements of a row, a vector at most each.
  template <class Body>
  inline __attribute__((always_inline)) void for_each_vector(int64_t count, Body body) const {
    const int64_t run = in_turns_ ? count : run_, step = in_turns_ ? 2 : 1;
    for (int64_t start = 0; start < count; start += run) {
      int64_t i = 0;
      for (; i + kCount <= run; i += kCount) body(start + i, 2 * start + step * i, kCount);
      if (i < run) body(start + i, 2 * start + step * i, static_cast<int>(run - i));
    }
  }

 private:
  static int low(int n) { return 2 * n < kCount ? 2 * n : kCount; }
  static int high(int n) { return 2 * n < kCount ? 0 : 2 * n - kCount; }
  int64_t run_, shift_at_, raw_at_;
  bool in_turns_, shift_first_;
};

template <int count>
struct Bytes {
  typedef uint8_t Vector __attribute__((vector_size(count)));
};

template <class V>
FASTGEN_INLINE Int<V> load_mask(const uint8_t* mask, int n) {
  typename Bytes<Lane<V>::kCount>::Vector bytes{};
  n == Lane<V>::kCount ? memcpy(&bytes, mask, sizeof bytes) : memcpy(&bytes, mask, n);
  return __builtin_convertvector(bytes, Int<V>) != 0;
}

// Elements that pass, before and after those that are transformed.
template <class S>
FASTGEN_INLINE void copy_around(const AffineCoupling& task, const S* from, S* to) {
  const int64_t end = task.begin + task.count;
  if (from == to) return;
  memcpy(to, from, task.begin * sizeof(S));
  memcpy(to + end, from + end, (task.width - end) * sizeof(S));
}

}  // namespace fastgen::FASTGEN_ISA
