// What every binding to torch's stable ABI includes: short names and checks that need no ATen header.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastgen {

using Tensor = torch::stable::Tensor;
using torch::headeronly::ScalarType;
using torch::stable::parallel_for;

// The Python side has checked shapes and dtypes with messages for people; these guard the kernels' memory.
inline void require(bool condition, const char* what) { STD_TORCH_CHECK(condition, "fastgen: ", what); }

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

// Fresh memory comes page by page as it is first written, which for large results takes longer than to
// compute them; pages of 2 MiB come 512 times less often. A hint: where the system ignores it, nothing is
// lost.
inline void prefer_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = uintptr_t{1} << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kHuge - 1) & ~(kHuge - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) & ~(kHuge - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace fastgen
