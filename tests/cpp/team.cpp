// Members of csrc/cpu/team.h in threads of their own: some come late, some never, some are slow. Every part
// reads what other parts wrote in the stage before, into memory that the stage before that one was read from:
// the thread sanitizer reports a stage that begins too early, and the sums here a part that is left out or
// done twice. No OpenMP, which the sanitizer does not understand. Prints how many parts were done.
#include "cpu/team.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

using fastgen::Member;
using fastgen::Team;

namespace {

constexpr int64_t kStages = 60, kMost = 97;

struct Stage {
  int64_t count, grain;
};

struct Work {
  std::vector<Stage> stages;
  std::vector<int64_t> rows[2] = {std::vector<int64_t>(kMost), std::vector<int64_t>(kMost)};
  std::vector<int64_t> done = std::vector<int64_t>(kStages * kMost);  // how often, of each stage
};

int64_t value(int64_t stage, int64_t i) { return stage * 1000003 + i * 7 + 1; }

void fail(const char* what, int64_t stage, int64_t i) {
  std::fprintf(stderr, "%s: stage %ld, number %ld\n", what, static_cast<long>(stage), static_cast<long>(i));
  std::abort();
}

void nap(int microseconds) { std::this_thread::sleep_for(std::chrono::microseconds(microseconds)); }

// The stages as one member goes through them; now and then it dwells on a part, so that others fall asleep.
void go_through(Team& team, Work& work, int64_t number, unsigned seed) {
  Member me(team, number);
  std::minstd_rand draw(seed);
  int64_t before = 0;  // numbers of the stage before
  for (int64_t s = 0; s < kStages; ++s) {
    std::vector<int64_t>&from = work.rows[(s + 1) % 2], &to = work.rows[s % 2];
    const Stage stage = work.stages[s];
    me.run(stage.count, stage.grain, [&](int64_t first, int64_t last) {
      for (int64_t i = 0; i < before; ++i)
        if (from[i] != value(s - 1, i)) fail("not what was written", s, i);
      for (int64_t i = first; i < last; ++i) to[i] = value(s, i), ++work.done[s * kMost + i];
      if (draw() % 64 == 0) nap(500);
    });
    before = stage.count;
  }
}

int64_t run_team(int64_t threads, int64_t present, bool late, std::minstd_rand& draw) {
  Work work;
  for (int64_t s = 0; s < kStages; ++s)
    work.stages.push_back({static_cast<int64_t>(draw() % kMost), static_cast<int64_t>(draw() % 9 + 1)});
  Team team(threads);
  std::vector<std::thread> members;
  const int64_t absent = draw() % threads;
  for (int64_t n = 0; n < threads; ++n) {
    if (present < threads && n == absent) continue;
    members.emplace_back([&team, &work, n, late, seed = static_cast<unsigned>(draw() + 1)] {
      if (late && n % 2 == 1) nap(3000);
      go_through(team, work, n, seed);
    });
  }
  for (std::thread& member : members) member.join();
  int64_t done = 0;
  for (int64_t s = 0; s < kStages; ++s)
    for (int64_t i = 0; i < kMost; ++i) {
      if (work.done[s * kMost + i] != (i < work.stages[s].count)) fail("not done once", s, i);
      done += work.done[s * kMost + i];
    }
  return done;
}

}  // namespace

int main() {
  std::minstd_rand draw(1);
  int64_t done = 0;
  for (int round = 0; round < 20; ++round)
    for (int64_t threads = 1; threads <= 4; ++threads)
      for (const bool late : {false, true})
        for (int64_t present = std::max<int64_t>(threads - 1, 1); present <= threads; ++present)
          done += run_team(threads, present, late, draw);
  std::printf("%ld\n", static_cast<long>(done));
}
