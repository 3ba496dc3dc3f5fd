// Prints a digest of what the CPU kernels compute, so that builds for two machines can be compared.
#include <cstdio>
#include <vector>

#include "cpu/ising.h"
#include "cpu/random.h"

namespace {

uint64_t digest(const void* data, size_t bytes) {  // FNV-1a
  uint64_t hash = 0xCBF29CE484222325u;
  for (size_t i = 0; i < bytes; ++i) hash = (hash ^ static_cast<const uint8_t*>(data)[i]) * 0x100000001B3u;
  return hash;
}

void draws() {
  const fastgen::Stream stream(0x123456789ABCDEFu, (int64_t{1} << 40) + 3, 7, 1);
  std::vector<uint32_t> words(10007);
  std::vector<float> numbers(10007);
  fastgen::baseline::bits(stream, 5, words.size(), false, words.data());
  std::printf("bits %016llx\n", (unsigned long long)digest(words.data(), words.size() * 4));
  fastgen::baseline::uniform(stream, 5, numbers.size(), false, numbers.data());
  std::printf("uniform %016llx\n", (unsigned long long)digest(numbers.data(), numbers.size() * 4));
  fastgen::baseline::normal(stream, 5, numbers.size(), false, numbers.data());
  std::printf("normal %016llx\n", (unsigned long long)digest(numbers.data(), numbers.size() * 4));
}

void ising(int64_t height, int64_t width, bool periodic) {
  const fastgen::IsingShape shape{height, width, periodic};
  std::vector<uint32_t> memory(2 * fastgen::IsingPlanes::plane_words(shape));
  const fastgen::IsingPlanes planes(shape, memory.data());
  std::vector<int8_t> spins(height * width, 1);
  fastgen::IsingRule rule;
  for (int old = 0; old < 2; ++old)
    for (int sum = 0; sum < 9; ++sum) rule.up_below[old][sum] = (int64_t{1} << 32) / 10 * (sum + 1) + 12345;
  fastgen::baseline::ising_pack(shape, spins.data(), planes);
  for (int colour : {0, 1}) fastgen::baseline::ising_halo(shape, planes, colour);
  for (uint32_t step = 0; step < 10; ++step) {
    const fastgen::Stream stream(9, 4, step, fastgen::kIsingStream);
    fastgen::baseline::ising_half_sweep(shape, rule, false, stream, planes, step % 2, 0, height);
    fastgen::baseline::ising_halo(shape, planes, step % 2);
  }
  fastgen::baseline::ising_unpack(shape, planes, spins.data());
  const fastgen::IsingSums sums = fastgen::baseline::ising_observe(shape, planes, 0, height);
  std::printf("ising %lldx%lld %016llx %lld %lld\n", (long long)height, (long long)width,
              (unsigned long long)digest(spins.data(), spins.size()), (long long)sums.up,
              (long long)sums.unequal);
}

}  // namespace

int main() {
  draws();
  ising(64, 512, true);
  ising(33, 131, false);
}
