// Runs one launcher of csrc/cuda and writes what it gives to standard output, as raw bytes. For the
// sanitizers, which do not work inside Python; test_sanitizers.py compares the bytes with the reference.
//   run_kernels bits|uniform|normal|bernoulli SEED STEP STREAM N ID...      bernoulli: element i has p = i /
//   N
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "error.h"
#include "random.h"

namespace {

using fastgen::cuda::Draw;

template <class T>
int finish(int code, const T* out, size_t count) {
  if (code != 0) {
    fprintf(stderr, "launch error: %s\n", fastgen::cuda::error_string(code));
    return 3;
  }
  return fwrite(out, sizeof(T), count, stdout) == count ? 0 : 4;
}

int run_draw(const std::string& kind, const std::vector<long long>& numbers) {
  const std::vector<int64_t> ids(numbers.begin() + 4, numbers.end());
  const int64_t n = numbers[3];
  const Draw draw{uint64_t(numbers[0]), ids.data(),          uint32_t(numbers[1]),
                  uint32_t(numbers[2]), int64_t(ids.size()), n};
  const size_t count = ids.size() * size_t(n);
  // Exactly as long as the output: the address sanitizer reports the first byte beyond.
  if (kind == "bits") {
    const auto out = std::make_unique<uint32_t[]>(count);
    return finish(fastgen::cuda::bits(draw, out.get(), nullptr), out.get(), count);
  }
  if (kind == "bernoulli") {
    std::vector<double> p(n);
    for (int64_t i = 0; i < n; i++) p[i] = double(i) / double(n);
    const auto out = std::make_unique<bool[]>(count);
    return finish(fastgen::cuda::bernoulli(draw, p.data(), 0, 1, out.get(), nullptr), out.get(), count);
  }
  const auto out = std::make_unique<float[]>(count);
  const auto launcher = kind == "uniform" ? fastgen::cuda::uniform : fastgen::cuda::normal;
  return finish(launcher(draw, out.get(), nullptr), out.get(), count);
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<long long> numbers;
  for (int i = 2; i < argc; i++) numbers.push_back(strtoll(argv[i], nullptr, 10));
  const std::string kind = argc > 1 ? argv[1] : "";
  if (kind == "bits" || kind == "uniform" || kind == "normal" || kind == "bernoulli") {
    if (numbers.size() > 4) return run_draw(kind, numbers);
  }
  fprintf(stderr, "usage: see the top of run_kernels.cpp\n");
  return 2;
}
