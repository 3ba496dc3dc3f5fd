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
#include "ising.h"
#include "random.h"

namespace {

using fastgen::cuda::Draw;

// Memory for a kernel: exactly as long as it may be, so that the address sanitizer reports the first byte
// beyond.
template <class T>
std::unique_ptr<T[]> array(size_t count) {
  return std::make_unique<T[]>(count);
}

template <class T>
void write(const T* out, size_t count) {
  if (fwrite(out, sizeof(T), count, stdout) != count) exit(4);
}
template <class T>
std::unique_ptr<T[]> read(size_t count) {
  auto in = array<T>(count);
  if (fread(in.get(), sizeof(T), count, stdin) != count) exit(5);
  return in;
}
void check(int code) {
  if (code == 0) return;
  fprintf(stderr, "launch error: %s\n", fastgen::cuda::error_string(code));
  exit(3);
}

template <class T, class Launcher>
void draw_into(const Draw& draw, Launcher launcher) {
  const size_t count = size_t(draw.rows) * size_t(draw.n);
  const auto out = array<T>(count);
  check(launcher(draw, out.get(), nullptr));
  write(out.get(), count);
}

void run_draw(const std::string& kind, const std::vector<long long>& numbers) {
  const std::vector<int64_t> ids(numbers.begin() + 4, numbers.end());
  const int64_t n = numbers[3];
  const Draw draw{uint64_t(numbers[0]), ids.data(),          uint32_t(numbers[1]),
                  uint32_t(numbers[2]), int64_t(ids.size()), n};
  std::vector<double> p(n);
  for (int64_t i = 0; i < n; i++) p[i] = double(i) / double(n);
  const auto bernoulli = [&p](const Draw& draw, bool* out, cudaStream_t queue) {
    return fastgen::cuda::bernoulli(draw, p.data(), 0, 1, out, queue);
  };
  if (kind == "bits") draw_into<uint32_t>(draw, fastgen::cuda::bits);
  if (kind == "uniform") draw_into<float>(draw, fastgen::cuda::uniform);
  if (kind == "normal") draw_into<float>(draw, fastgen::cuda::normal);
  if (kind == "bernoulli") draw_into<bool>(draw, bernoulli);
}

void run_ising(const std::vector<long long>& numbers) {
  const std::vector<int64_t> ids(numbers.begin() + 7, numbers.end());
  const int64_t chains = int64_t(ids.size()), height = numbers[2], width = numbers[3], sweeps = numbers[6];
  const auto thresholds = read<int64_t>(18 * chains);
  const auto spins = read<int8_t>(chains * height * width);
  const auto magnetisation = array<int64_t>(chains * sweeps), bonds = array<int64_t>(chains * sweeps);
  const fastgen::cuda::Ising problem{chains,          int(height),      int(width),  numbers[4] != 0,
                                     numbers[5] != 0, sweeps,           numbers[1],  uint64_t(numbers[0]),
                                     ids.data(),      thresholds.get(), spins.get(), magnetisation.get(),
                                     bonds.get()};
  const int64_t bytes = fastgen::cuda::ising_workspace(problem);
  const auto workspace = array<char>(bytes);
  check(fastgen::cuda::ising(problem, bytes != 0 ? workspace.get() : nullptr, nullptr));
  write(spins.get(), chains * height * width);
  write(magnetisation.get(), chains * sweeps);
  write(bonds.get(), chains * sweeps);
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<long long> numbers;
  for (int i = 2; i < argc; i++) numbers.push_back(strtoll(argv[i], nullptr, 10));
  const std::string kind = argc > 1 ? argv[1] : "";
  if (kind == "ising" && numbers.size() > 7) {
    run_ising(numbers);
  } else if (kind != "ising" && numbers.size() > 4) {
    run_draw(kind, numbers);
  } else {
    fprintf(stderr, "usage: see the top of run_kernels.cpp\n");
    return 2;
  }
  return 0;
}
