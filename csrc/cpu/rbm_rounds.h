// Work that threads share out in rounds: in each round every item is done once, and no thread goes on to the
// next round before all items are done. A thread takes the items of its own share first, whose weights its
// cache holds, and then those of others, so that a thread that the system has put aside holds nobody up for
// longer than the item it was at; no thread need be running for the others to finish.
#pragma once
#include <sched.h>

#include "rbm_layout.h"

namespace fastgen::FASTGEN_ISA {

struct alignas(64) RoundsDone {
  uint64_t items;  // of all rounds so far
};

// Tells the core that this thread only waits.
FASTGEN_INLINE void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Does the unclaimed ones of `items` items, from `first` on and round the end, and returns when `done` has
// reached `total`. `claims` holds for each item the last round it was claimed in; rounds are numbered from 1.
template <class Work>
FASTGEN_INLINE void run_round(uint64_t* claims, RoundsDone& done, uint64_t round, int64_t items,
                              int64_t first, uint64_t total, const Work& work) {
  for (int64_t i = 0; i < items; ++i) {
    const int64_t item = first + i < items ? first + i : first + i - items;
    uint64_t seen = __atomic_load_n(&claims[item], __ATOMIC_RELAXED);
    if (seen >= round) continue;
    if (!__atomic_compare_exchange_n(&claims[item], &seen, round, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
      continue;
    work(item);
    __atomic_fetch_add(&done.items, 1, __ATOMIC_RELEASE);
  }
  constexpr int kSpins = 1 << 10;
  for (int spins = 0; __atomic_load_n(&done.items, __ATOMIC_ACQUIRE) < total; ++spins) {
    if (spins < kSpins)
      relax();
    else
      sched_yield();
  }
}

}  // namespace fastgen::FASTGEN_ISA
