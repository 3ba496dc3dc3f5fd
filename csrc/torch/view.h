// What bindings look at of a tensor, wherever it came from: torch's dispatcher (native.h) or Python itself
// (direct.h). It borrows everything and lives no longer than the call.
#pragma once
#include <algorithm>
#include <optional>

#include "native.h"

namespace fastgen {

struct View {
  void* memory = nullptr;
  ScalarType type = ScalarType::Undefined;
  int64_t element_size = 0, dims = 0;
  const int64_t *sizes = nullptr, *strides = nullptr;

  View() = default;
  View(const Tensor& t)  // NOLINT: a tensor stands for its view
      : memory(t.data_ptr()),
        type(t.scalar_type()),
        element_size(static_cast<int64_t>(t.element_size())),
        dims(t.dim()),
        sizes(t.sizes().data()),
        strides(t.strides().data()) {}

  int64_t size(int64_t dim) const { return sizes[dim]; }
  int64_t last() const { return sizes[dims - 1]; }

  int64_t numel() const {
    int64_t count = 1;
    for (int64_t i = 0; i < dims; ++i) count *= sizes[i];
    return count;
  }

  // Rows of the last dimension.
  int64_t rows() const {
    int64_t count = 1;
    for (int64_t i = 0; i + 1 < dims; ++i) count *= sizes[i];
    return count;
  }

  bool is_contiguous() const {
    int64_t expected = 1;
    bool dense = true;
    for (int64_t i = dims - 1; i >= 0; --i) {
      if (sizes[i] == 0) return true;
      dense &= sizes[i] == 1 || strides[i] == expected;
      expected *= sizes[i];
    }
    return dense;
  }

  bool is(ScalarType wanted) const { return type == wanted && is_contiguous(); }

  // Whether all sizes are those of another view, but for the last one, which is `last_size`.
  bool is_like(const View& other, int64_t last_size) const {
    return dims == other.dims && std::equal(sizes, sizes + dims - 1, other.sizes) && last() == last_size;
  }
};

inline std::optional<View> view(const std::optional<Tensor>& t) {
  return t ? std::optional<View>(*t) : std::nullopt;
}

template <class T>
T* data(const View& view) {
  return static_cast<T*>(view.memory);
}

}  // namespace fastgen
