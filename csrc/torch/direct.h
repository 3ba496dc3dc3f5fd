// Ops called straight from Python, past torch's dispatcher, which for a call of some microseconds is a good
// part of it. The public function of an op goes this way first, where nobody watches the call
// (fastgen/ops/_registry.py): no mode, tracer, profiler or transform. Anything but plain arguments is
// declined (the function returns None), and the public function then goes its long way, where every tensor is
// welcome and every error has a message for people.
//
// Tensors are seen, and results made, through the table of C functions that torch.Tensor has for the exchange
// of tensors with other libraries (DLPack's), which holds for later releases of torch as its stable ABI does.
#pragma once
#include <Python.h>

// Plain C of DLPack itself, but torch refuses all of its folder to those who want the stable ABI.
#pragma push_macro("TORCH_TARGET_VERSION")
#undef TORCH_TARGET_VERSION
#include <ATen/dlpack.h>
#pragma pop_macro("TORCH_TARGET_VERSION")

#include <array>
#include <exception>
#include <optional>
#include <utility>
#include <vector>

#include "view.h"

namespace fastgen {

// What `import` finds once; `exchange` is null in a torch without such a table, where nothing goes this way.
struct PythonTorch {
  const DLPackExchangeAPI* exchange = nullptr;
  PyObject *tensor = nullptr, *parameter = nullptr, *is_grad_enabled = nullptr;
  PyObject *requires_grad = nullptr, *is_neg = nullptr;  // names of a tensor's
};
inline PythonTorch python_torch;

// The arguments of a call, taken one after the other. One that is not plain makes the call one to decline.
class Arguments {
 public:
  Arguments(PyObject* const* all, Py_ssize_t count) : next_(all), end_(all + count) {}

  // Whether all arguments were there and plain, and none is left.
  bool plain() const { return plain_ && next_ == end_; }

  // A dense tensor of the CPU that has no gradient to think of and no pending sign.
  View tensor() {
    PyObject* const object = next();
    return object ? view_of(object) : View();
  }
  std::optional<View> maybe_tensor() {
    PyObject* const object = next();
    if (object == Py_None || !object) return std::nullopt;
    return view_of(object);
  }
  int64_t integer() {
    PyObject* const object = next();
    if (!object || !PyLong_CheckExact(object)) return refuse(), 0;
    const int64_t found = PyLong_AsLongLong(object);
    if (found == -1 && PyErr_Occurred()) refuse();
    return found;
  }
  double number() {
    PyObject* const object = next();
    if (!object || !PyFloat_CheckExact(object)) return refuse(), 0.0;
    return PyFloat_AS_DOUBLE(object);
  }
  std::optional<int64_t> maybe_integer() {
    if (next_ != end_ && *next_ == Py_None) return ++next_, std::nullopt;
    return integer();
  }
  std::optional<double> maybe_number() {
    if (next_ != end_ && *next_ == Py_None) return ++next_, std::nullopt;
    return number();
  }
  bool flag() {
    PyObject* const object = next();
    if (object != Py_True && object != Py_False) refuse();
    return object == Py_True;
  }

 private:
  PyObject* next() { return next_ == end_ ? refuse(), nullptr : *next_++; }
  void refuse() { plain_ = false; }

  View view_of(PyObject* object) {
    const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
    DLTensor found;
    if ((type != python_torch.tensor && type != python_torch.parameter) ||
        python_torch.exchange->dltensor_from_py_object_no_sync(object, &found) != 0)
      return refuse(), View();
    View view;
    view.memory = static_cast<char*>(found.data) + found.byte_offset;
    view.type = type_of(found.dtype), view.element_size = (found.dtype.bits + 7) / 8;
    view.dims = found.ndim, view.sizes = found.shape, view.strides = found.strides;
    const bool floats = found.dtype.code != kDLInt && found.dtype.code != kDLUInt;
    if (found.device.device_type != kDLCPU || view.type == ScalarType::Undefined ||
        (!view.memory && view.numel() > 0) || (floats && (wants_gradient(object) || is_negated(object))))
      refuse();
    return view;
  }

  static ScalarType type_of(DLDataType type) {
    if (type.lanes != 1) return ScalarType::Undefined;
    if (type.code == kDLFloat && type.bits == 32) return ScalarType::Float;
    if (type.code == kDLFloat && type.bits == 64) return ScalarType::Double;
    if (type.code == kDLBfloat && type.bits == 16) return ScalarType::BFloat16;
    if (type.code == kDLInt && type.bits == 64) return ScalarType::Long;
    if (type.code == kDLInt && type.bits == 32) return ScalarType::Int;
    if (type.code == kDLInt && type.bits == 8) return ScalarType::Char;
    if (type.code == kDLUInt && type.bits == 8) return ScalarType::Byte;
    if (type.code == kDLBool && type.bits == 8) return ScalarType::Bool;
    return ScalarType::Undefined;
  }

  static bool wants_gradient(PyObject* tensor) {
    return is_true(PyObject_GetAttr(tensor, python_torch.requires_grad)) &&
           is_true(PyObject_CallNoArgs(python_torch.is_grad_enabled));
  }
  // The imaginary part of a conjugate has the sign of its memory turned.
  static bool is_negated(PyObject* tensor) {
    return is_true(PyObject_CallMethodNoArgs(tensor, python_torch.is_neg));
  }
  static bool is_true(PyObject* answer) {
    const bool found = answer != Py_False;
    Py_XDECREF(answer);
    return found;
  }

  PyObject* const* next_;
  PyObject* const* const end_;
  bool plain_ = true;
};

// A new tensor, not initialized; Python gets it unless something goes wrong before. Its memory is the
// exchange's: it cannot be resized.
class Result {
 public:
  // Like another one, but for the last size.
  Result(const View& like, int64_t last) {
    require(like.dims > 0 && like.dims <= kMostDims, "bad number of dimensions");
    std::array<int64_t, kMostDims> sizes;
    std::copy(like.sizes, like.sizes + like.dims - 1, sizes.begin());
    sizes[like.dims - 1] = last;
    DLTensor wanted{};
    wanted.device = {kDLCPU, 0}, wanted.ndim = static_cast<int32_t>(like.dims), wanted.shape = sizes.data();
    wanted.dtype = {like.type == ScalarType::BFloat16 ? uint8_t{kDLBfloat} : uint8_t{kDLFloat},
                    static_cast<uint8_t>(8 * like.element_size), 1};
    DLManagedTensorVersioned* made = nullptr;
    const auto ignore = [](void*, const char*, const char*) {};
    require(python_torch.exchange->managed_tensor_allocator(&wanted, &made, nullptr, ignore) == 0,
            "no memory");
    memory_ = made->dl_tensor.data;
    void* object = nullptr;
    require(python_torch.exchange->managed_tensor_to_py_object_no_sync(made, &object) == 0, "no memory");
    object_ = static_cast<PyObject*>(object);
  }
  Result(const Result&) = delete;
  ~Result() { Py_XDECREF(object_); }

  void* memory() const { return memory_; }
  PyObject* release() { return std::exchange(object_, nullptr); }

 private:
  static constexpr int64_t kMostDims = 16;

  void* memory_ = nullptr;
  PyObject* object_ = nullptr;
};

// Two results as a tuple.
inline PyObject* pair_of(Result& first, Result& second) {
  PyObject* const pair = PyTuple_New(2);
  require(pair != nullptr, "no memory");
  PyTuple_SET_ITEM(pair, 0, first.release());
  PyTuple_SET_ITEM(pair, 1, second.release());
  return pair;
}

// Other threads of Python may run meanwhile.
template <class F>
void without_lock(F run) {
  struct Unlocked {
    PyThreadState* state = PyEval_SaveThread();
    ~Unlocked() { PyEval_RestoreThread(state); }
  } unlocked;
  run();
}

inline std::vector<PyMethodDef>& direct_functions() {
  static std::vector<PyMethodDef> all;
  return all;
}

// Null, here and below: declined.
template <PyObject* (*kRun)(Arguments&)>
PyObject* call_directly(PyObject*, PyObject* const* all, Py_ssize_t count) {
  PyObject* found = nullptr;
  try {
    Arguments given(all, count);
    found = kRun(given);
  } catch (const std::exception&) {  // what it was is found again, and said, on the long way
  }
  if (found) return found;
  PyErr_Clear();
  Py_RETURN_NONE;
}

struct DirectFunction {
  DirectFunction(const char* name, _PyCFunctionFast function) {
    direct_functions().push_back(
        {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function)), METH_FASTCALL, nullptr});
  }
};

// At the end of an op's binding: `fastgen._native.<name>` calls `run`.
#define FASTGEN_DIRECT(name, run) \
  static const fastgen::DirectFunction direct_##name(#name, &fastgen::call_directly<&run>);

}  // namespace fastgen
