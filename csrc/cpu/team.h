// The threads of one parallel region, which go through the stages of a computation side by side: between
// stages they meet, which takes a fraction of a microsecond where leaving the region and entering another
// takes several.
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

// What runs inside the region must not throw: the others would wait for the thread that left.
class Team {
 public:
  // `threads` is how many indices the region is entered with, one for each thread that is wished for.
  explicit Team(int64_t threads)
      : threads_(static_cast<int32_t>(threads)), shares_(std::make_unique<Share[]>(threads)) {}

  // Each thread of the region calls this first, with the indices that it was given, and is told its number.
  // All of them wait until every index has been brought, so that afterwards size() of them are known to run
  // at once.
  FASTGEN_ALWAYS_INLINE int64_t join(int64_t first, int64_t last) noexcept {
    const int64_t number = size_.fetch_add(1);
    brought_.fetch_add(static_cast<int32_t>(last - first));
    wake(brought_);
    for (int32_t seen; (seen = brought_.load()) != threads_;) wait_while(brought_, seen);
    return number;
  }
  int64_t size() const noexcept { return size_.load(std::memory_order_relaxed); }

  // Parts of 0 .. count - 1 that begin at multiples of `grain`, some for each thread, one after the other;
  // who is done with its own goes on with those of others. Returns once all of them are done. Every thread of
  // the region calls it, with the same arguments but for its number.
  template <class F>
  FASTGEN_ALWAYS_INLINE void run(int64_t number, int64_t count, int64_t grain, F part) noexcept {
    const int64_t parts = (count + grain - 1) / grain, threads = size();
    for (int64_t i = 0; i < threads; ++i) {
      const int64_t owner = (number + i) % threads;
      const int64_t begin = parts * owner / threads, end = parts * (owner + 1) / threads;
      for (int64_t p; (p = begin + shares_[owner].taken.fetch_add(1)) < end;)
        part(p * grain, std::min((p + 1) * grain, count));
    }
    meet();
  }

 private:
  struct alignas(64) Share {
    std::atomic<int64_t> taken{0};  // parts of this thread's that somebody has begun
  };

  FASTGEN_ALWAYS_INLINE void meet() noexcept {
    const int32_t round = round_.load();
    if (arrived_.fetch_add(1) + 1 < size()) return wait_while(round_, round);
    arrived_.store(0);
    for (int64_t i = 0; i < size(); ++i) shares_[i].taken.store(0, std::memory_order_relaxed);
    round_.store(round + 1);
    wake(round_);
  }

  // A while of looking again and again, which is long enough where every thread has a core. Where others want
  // the cores too, the one waited for may have none: then this thread sleeps.
  FASTGEN_ALWAYS_INLINE void wait_while(const std::atomic<int32_t>& word, int32_t value) noexcept {
    for (int spins = 0; spins < kSpins; ++spins) {
      if (word.load() != value) return;
#if defined(__x86_64__)
      _mm_pause();
#endif
    }
#if defined(__linux__)
    sleepers_.fetch_add(1);
    while (word.load() == value) syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
    sleepers_.fetch_sub(1);
#else
    while (word.load() == value) std::this_thread::yield();
#endif
  }

  // Those who wait for `word`, which has changed.
  FASTGEN_ALWAYS_INLINE void wake([[maybe_unused]] const std::atomic<int32_t>& word) noexcept {
#if defined(__linux__)
    if (sleepers_.load() > 0) syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#endif
  }

  static constexpr int kSpins = 2000;  // 20 to 100 us

  const int32_t threads_;
  const std::unique_ptr<Share[]> shares_;
  alignas(64) std::atomic<int32_t> arrived_{0};
  alignas(64) std::atomic<int32_t> round_{0};
  alignas(64) std::atomic<int32_t> sleepers_{0}, brought_{0};
  std::atomic<int64_t> size_{0};
};

}  // namespace fastgen
