// The threads of one parallel region, which go through the stages of a computation side by side: between
// stages they wait for each other's work, which takes a fraction of a microsecond where leaving the region
// and entering another takes several.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Inlined everywhere: an instance of its own, shared by the files of all instruction sets, would be that of
// any of them.
#define FASTGEN_ALWAYS_INLINE inline __attribute__((always_inline))

namespace fastgen {

// What the threads share.
class Team {
 public:
  explicit Team(int64_t threads) : threads_(threads), shares_(std::make_unique<Share[]>(threads)) {}

  int64_t threads() const noexcept { return threads_; }

 private:
  friend class Member;

  // Stages count from 1. What counts within a stage stands below the stage's number, so that nobody who is
  // late mistakes one stage for another.
  static constexpr int kStage = 32;
  struct alignas(64) Share {
    std::atomic<int64_t> taken{0};  // parts of this share that somebody has begun
  };

  const int64_t threads_;
  const std::unique_ptr<Share[]> shares_;
  alignas(64) std::atomic<int64_t> done_{0};      // parts that are done
  alignas(64) std::atomic<int32_t> finished_{0};  // the latest stage all parts of which are done
  std::atomic<int32_t> sleepers_{0};
};

// A thread of the team. No thread waits for another one that has no work in hand, so those that get no core,
// or come late, or never, hold nobody up. What runs must not throw: others would wait for what it had in
// hand.
class Member {
 public:
  // `number`: 0 .. threads - 1, each for one member at the most.
  Member(Team& team, int64_t number) noexcept : team_(team), number_(number) {}

  int64_t number() const noexcept { return number_; }
  int64_t threads() const noexcept { return team_.threads_; }

  // Parts of 0 .. count - 1 that begin at multiples of `grain`: a share for each thread, one part after the
  // other, and then what is left of the others' shares. Returns once all parts are done. Every thread calls
  // it with the same arguments.
  template <class F>
  FASTGEN_ALWAYS_INLINE void run(int64_t count, int64_t grain, F part) noexcept {
    if (count <= 0) return;
    const int64_t parts = (count + grain - 1) / grain, stage = ++stage_;
    begin(stage);
    int64_t mine = 0;
    for (int64_t i = 0; i < threads(); ++i) {
      const int64_t owner = (number_ + i) % threads();
      const int64_t first = parts * owner / threads(), size = parts * (owner + 1) / threads() - first;
      for (int64_t p; (p = take(stage, owner, size)) < size; ++mine)
        part((first + p) * grain, std::min((first + p + 1) * grain, count));
    }
    if (mine > 0 && team_.done_.fetch_add(mine) + mine == (stage << Team::kStage) + parts) finish(stage);
    wait_for(stage);
  }

 private:
  FASTGEN_ALWAYS_INLINE void begin(int64_t stage) noexcept {
    int64_t done = team_.done_.load();
    while (done >> Team::kStage < stage && !team_.done_.compare_exchange_weak(done, stage << Team::kStage)) {
    }
  }

  // The next part of a share, or its size if none is left.
  FASTGEN_ALWAYS_INLINE int64_t take(int64_t stage, int64_t owner, int64_t size) noexcept {
    std::atomic<int64_t>& taken = team_.shares_[owner].taken;
    const int64_t none = stage << Team::kStage;
    for (int64_t now = taken.load();;) {
      const int64_t next = std::max(now, none) - none;
      if (next >= size) return size;
      if (taken.compare_exchange_weak(now, none + next + 1)) return next;
    }
  }

  FASTGEN_ALWAYS_INLINE void finish(int64_t stage) noexcept {
    team_.finished_.store(static_cast<int32_t>(stage));
#if defined(__linux__)
    if (team_.sleepers_.load() > 0)
      syscall(SYS_futex, &team_.finished_, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#endif
  }

  // Looks again and again for a while, which is long enough where every thread has a core. Where others want
  // the cores too, this thread sleeps, and is less patient from then on.
  FASTGEN_ALWAYS_INLINE void wait_for(int64_t stage) noexcept {
    for (int spins = 0; spins < patience_; ++spins) {
      if (team_.finished_.load() >= stage) return;
#if defined(__x86_64__)
      _mm_pause();
#endif
    }
    patience_ = std::max(patience_ / 2, kLeastSpins);
#if defined(__linux__)
    team_.sleepers_.fetch_add(1);
    for (int32_t now; (now = team_.finished_.load()) < stage;)
      syscall(SYS_futex, &team_.finished_, FUTEX_WAIT_PRIVATE, now, nullptr, nullptr, 0);
    team_.sleepers_.fetch_sub(1);
#else
    while (team_.finished_.load() < stage) std::this_thread::yield();
#endif
  }

  static constexpr int kMostSpins = 4000, kLeastSpins = 200;

  Team& team_;
  const int64_t number_;
  int64_t stage_ = 0;
  int patience_ = kMostSpins;
};

}  // namespace fastgen
