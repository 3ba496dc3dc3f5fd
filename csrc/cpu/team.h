// The threads of one parallel region, which go through the stages of a computation side by side: between
// stages they meet, which takes a fraction of a microsecond where leaving the region and entering another
// takes several.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Inlined everywhere: an instance of its own, shared by the files of all instruction sets, would be that of
// any of them.
#define FASTGEN_ALWAYS_INLINE inline __attribute__((always_inline))

namespace fastgen {

class Team {
 public:
  // `threads` is how many indices the region is entered with, one for each thread that is wished for.
  explicit Team(int64_t threads) : threads_(threads) {}

  // Each thread of the region calls this first, with the indices that it was given. All of them wait until
  // every index has been brought, so that afterwards size() of them are known to run at once.
  FASTGEN_ALWAYS_INLINE void join(int64_t first, int64_t last) {
    size_.fetch_add(1);
    brought_.fetch_add(last - first);
    wait([this] { return brought_.load() == threads_; });
  }

  // Parts of 0 .. count - 1, as threads come for them; returns once all of them are done. Every thread of the
  // region calls it, with the same count.
  template <class F>
  FASTGEN_ALWAYS_INLINE void run(int64_t count, F part) {
    const int64_t grain = std::max<int64_t>(count / (4 * size_.load(std::memory_order_relaxed)), 1);
    for (int64_t first; (first = next_.fetch_add(grain)) < count;)
      part(first, std::min(first + grain, count));
    meet();
  }

 private:
  FASTGEN_ALWAYS_INLINE void meet() {
    const int64_t round = round_.load();
    if (arrived_.fetch_add(1) + 1 == size_.load(std::memory_order_relaxed)) {
      arrived_.store(0);
      next_.store(0);
      round_.store(round + 1);
    } else {
      wait([this, round] { return round_.load() != round; });
    }
  }

  // Where there are more threads than cores, the one waited for may need this core.
  template <class F>
  FASTGEN_ALWAYS_INLINE static void wait(F done) {
    for (int spins = 0; !done(); ++spins) {
      if (spins > 1000) {
        std::this_thread::yield();
        continue;
      }
#if defined(__x86_64__)
      _mm_pause();
#endif
    }
  }

  const int64_t threads_;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<int64_t> round_{0};
  std::atomic<int64_t> brought_{0}, size_{0};
};

}  // namespace fastgen
