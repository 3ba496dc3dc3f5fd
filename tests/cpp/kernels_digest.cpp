// Prints a digest of what the CPU kernels compute, so that builds for two machines can be compared.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cpu/ising.h"
#include "cpu/random.h"
#include "cpu/rbm_gibbs.h"

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

// Weights, biases and states from draws; the probabilities of the last step are in the digest too.
void rbm_gibbs(int64_t chains, int64_t visible, int64_t hidden, bool bfloat16, bool gaussian) {
  const auto draw = [](int64_t step, int64_t count, float scale) {
    std::vector<float> numbers(count);
    fastgen::baseline::normal(fastgen::Stream(5, 1, static_cast<uint32_t>(step), 1), 0, count, false,
                              numbers.data());
    for (float& x : numbers) x *= scale;
    return numbers;
  };
  const std::vector<float> weight = draw(0, visible * hidden, 0.3f), v_bias = draw(1, visible, 0.5f),
                           h_bias = draw(2, hidden, 0.5f), beta(chains, 0.9f);
  std::vector<uint16_t> halves(visible * hidden);
  for (size_t i = 0; i < halves.size(); ++i) std::memcpy(&halves[i], (const char*)&weight[i] + 2, 2);
  std::vector<float> v = draw(3, chains * visible, 1.0f), v_mean(v.size()), h_mean(chains * hidden);
  std::vector<uint8_t> v_bytes(v.size()), h_bytes(h_mean.size());
  for (size_t i = 0; i < v.size(); ++i) v_bytes[i] = v[i] > 0;
  std::vector<int64_t> ids(chains);
  for (int64_t i = 0; i < chains; ++i) ids[i] = (int64_t{1} << 33) + 3 * i;

  fastgen::RbmGibbs task{};
  task.chains = chains, task.visible = visible, task.hidden = hidden, task.half_steps = 5;
  task.seed = 77, task.first_step = 6, task.draw_stream = 19, task.noise_stream = 20;
  task.sample_ids = ids.data(), task.bfloat16 = bfloat16;
  task.weight = bfloat16 ? static_cast<const void*>(halves.data()) : weight.data();
  task.visible_step = hidden, task.hidden_step = 1;
  task.v_bias = v_bias.data(), task.h_bias = h_bias.data(), task.beta = beta.data();
  task.v = {v_bytes.data(), v_bytes.data(), false}, task.h = {h_bytes.data(), h_bytes.data(), false};
  task.v_real = gaussian ? v.data() : nullptr;
  task.v_mean = v_mean.data(), task.h_mean = h_mean.data();
  const fastgen::RbmPlan plan = fastgen::baseline::rbm_plan(task, 1);
  void* workspace = std::aligned_alloc(64, plan.workspace_bytes);
  std::memset(workspace, 0, plan.progress_bytes);
  const bool valid = fastgen::baseline::rbm_gibbs(task, plan, workspace, 0, 1);
  std::free(workspace);
  std::printf("rbm_gibbs %lldx%lldx%lld %d %016llx %016llx %016llx %016llx %016llx\n", (long long)chains,
              (long long)visible, (long long)hidden, valid,
              (unsigned long long)digest(v.data(), v.size() * 4),
              (unsigned long long)digest(v_bytes.data(), v_bytes.size()),
              (unsigned long long)digest(h_bytes.data(), h_bytes.size()),
              (unsigned long long)digest(v_mean.data(), v_mean.size() * 4),
              (unsigned long long)digest(h_mean.data(), h_mean.size() * 4));
}

}  // namespace

int main() {
  draws();
  ising(64, 512, true);
  ising(33, 131, false);
  rbm_gibbs(3, 70, 45, false, false);
  rbm_gibbs(40, 70, 45, false, false);
  rbm_gibbs(40, 33, 100, true, false);
  rbm_gibbs(9, 33, 20, false, true);
}
