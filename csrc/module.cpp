// The extension module fastgen._native: importing it registers the C++ implementations with torch
// (csrc/torch), and its functions tell how it was built and on what it runs. Nothing here takes a tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/isa.h"

namespace py = pybind11;

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
}
