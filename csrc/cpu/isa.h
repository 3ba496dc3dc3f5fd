// Which instruction set runs. Every kernel of csrc/cpu is compiled once for each; the best one that this CPU
// has is taken when the library is loaded, and a test or a benchmark may ask for another.
#pragma once
#include <string>
#include <vector>

namespace fastgen {

#if defined(__x86_64__)
#define FASTGEN_FOR_EACH_ISA(X) X(baseline) X(avx2) X(avx512)
#else
#define FASTGEN_FOR_EACH_ISA(X) X(baseline)
#endif

enum class Isa {
#define FASTGEN_ENUMERATOR(name) name,
  FASTGEN_FOR_EACH_ISA(FASTGEN_ENUMERATOR)
#undef FASTGEN_ENUMERATOR
};

Isa current_isa();
std::string isa_name(Isa isa);
std::vector<std::string> usable_isas();        // slowest first
std::string use_isa(const std::string& name);  // returns the name of the one in use before
std::vector<std::string> cpu_features();

// Declares `result name arguments` in every instruction set's namespace.
#define FASTGEN_DECLARE_KERNEL(result, name, arguments) FASTGEN_FOR_EACH_ISA_DECLARE(result, name, arguments)
#if defined(__x86_64__)
#define FASTGEN_FOR_EACH_ISA_DECLARE(result, name, arguments) \
  namespace baseline {                                        \
  result name arguments;                                      \
  }                                                           \
  namespace avx2 {                                            \
  result name arguments;                                      \
  }                                                           \
  namespace avx512 {                                          \
  result name arguments;                                      \
  }
#define FASTGEN_KERNEL(name)                                                    \
  (::fastgen::current_isa() == ::fastgen::Isa::avx512 ? ::fastgen::avx512::name \
   : ::fastgen::current_isa() == ::fastgen::Isa::avx2 ? ::fastgen::avx2::name   \
                                                      : ::fastgen::baseline::name)
#else
#define FASTGEN_FOR_EACH_ISA_DECLARE(result, name, arguments) \
  namespace baseline {                                        \
  result name arguments;                                      \
  }
#define FASTGEN_KERNEL(name) (::fastgen::baseline::name)
#endif

}  // namespace fastgen
