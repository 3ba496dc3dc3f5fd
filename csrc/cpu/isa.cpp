#include "isa.h"

#include <atomic>
#include <stdexcept>

namespace fastgen {
namespace {

bool usable(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (isa == Isa::avx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (isa == Isa::avx512)
    return usable(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return isa == Isa::baseline;
}

constexpr Isa kIsas[] = {
#define FASTGEN_LIST(name) Isa::name,
    FASTGEN_FOR_EACH_ISA(FASTGEN_LIST)
#undef FASTGEN_LIST
};

Isa best() {
  Isa found = Isa::baseline;
  for (Isa isa : kIsas)
    if (usable(isa)) found = isa;
  return found;
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa{best()};
  return isa;
}

}  // namespace

Isa current_isa() { return chosen().load(std::memory_order_relaxed); }

std::string isa_name(Isa isa) {
  switch (isa) {
#define FASTGEN_NAME(name) \
  case Isa::name:          \
    return #name;
    FASTGEN_FOR_EACH_ISA(FASTGEN_NAME)
#undef FASTGEN_NAME
  }
  return "unknown";
}

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (Isa isa : kIsas)
    if (usable(isa)) names.push_back(isa_name(isa));
  return names;
}

std::string use_isa(const std::string& name) {
  for (Isa isa : kIsas)
    if (isa_name(isa) == name && usable(isa)) return isa_name(chosen().exchange(isa));
  std::string known;
  for (const std::string& other : usable_isas()) known += (known.empty() ? "" : ", ") + other;
  throw std::invalid_argument("isa is '" + name + "', wanted one that this CPU has: " + known);
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> features;
#if defined(__x86_64__)
  __builtin_cpu_init();
#define FASTGEN_FEATURE(name) \
  if (__builtin_cpu_supports(name)) features.push_back(name);
  FASTGEN_FEATURE("sse4.2")
  FASTGEN_FEATURE("avx")
  FASTGEN_FEATURE("avx2")
  FASTGEN_FEATURE("fma")
  FASTGEN_FEATURE("f16c")
  FASTGEN_FEATURE("avx512f")
  FASTGEN_FEATURE("avx512bw")
  FASTGEN_FEATURE("avx512dq")
  FASTGEN_FEATURE("avx512vl")
  FASTGEN_FEATURE("avx512vnni")
  FASTGEN_FEATURE("avx512bf16")
#undef FASTGEN_FEATURE
#elif defined(__aarch64__)
  features.push_back("neon");
#endif
  return features;
}

}  // namespace fastgen
