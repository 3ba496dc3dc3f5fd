// The extension module fastgen._native: importing it registers the C++ implementations with torch
// (csrc/torch); its functions tell how it was built and on what it runs, and those with the word of an op are
// that op called directly.

// Releases of torch up to 2.12 refuse their copy of pybind11 to those who want the stable ABI.
#pragma push_macro("TORCH_TARGET_VERSION")
#undef TORCH_TARGET_VERSION
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#pragma pop_macro("TORCH_TARGET_VERSION")

#include "cpu/isa.h"
#include "torch/direct.h"

namespace py = pybind11;

namespace {

void add_direct_functions(py::module_& m) {
  const py::module_ torch = py::module_::import("torch");
  const py::object tensor = torch.attr("Tensor");
  const py::object table = py::getattr(tensor, "__dlpack_c_exchange_api__", py::none());
  if (table.is_none()) return;
  const auto* exchange =
      static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(table.ptr(), "dlpack_exchange_api"));
  if (!exchange) throw py::error_already_set();
  if (exchange->header.version.major != DLPACK_MAJOR_VERSION) return;
  if (!exchange->dltensor_from_py_object_no_sync) return;  // which DLPack leaves to each library
  const auto keep = [](const py::object& object) { return py::object(object).release().ptr(); };
  fastgen::python_torch = {exchange,
                           keep(tensor),
                           keep(torch.attr("nn").attr("Parameter")),
                           keep(torch.attr("is_grad_enabled")),
                           keep(py::str("requires_grad")),
                           keep(py::str("is_neg"))};
  std::vector<PyMethodDef>& functions = fastgen::direct_functions();
  functions.push_back({});
  if (PyModule_AddFunctions(m.ptr(), functions.data()) != 0) throw py::error_already_set();
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "C++ implementations of fastgen's ops";
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["compiler"] = FASTGEN_COMPILER;
        info["build_type"] = FASTGEN_BUILD_TYPE;
        info["torch"] = FASTGEN_TORCH_VERSION;
        info["cuda"] = FASTGEN_CUDA_VERSION;
        return info;
      },
      "Compiler, build type, and the versions of torch and CUDA that it was built with ('' without CUDA).");
  m.def("cpu_features", &fastgen::cpu_features, "The CPU features that the kernels care about.");
  m.def("usable_isas", &fastgen::usable_isas, "Instruction sets built and usable here, slowest first.");
  m.def("isa", [] { return fastgen::isa_name(fastgen::current_isa()); }, "The instruction set in use.");
  m.def("use_isa", &fastgen::use_isa, py::arg("name"),
        "Use another instruction set; returns the one before.");
  add_direct_functions(m);
}
