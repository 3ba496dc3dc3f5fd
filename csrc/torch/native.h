// What every binding to torch's stable ABI includes: short names and checks that need no ATen header.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

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

}  // namespace fastgen
