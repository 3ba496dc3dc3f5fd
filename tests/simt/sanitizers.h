// What the layer tells the address and the thread sanitizer.
//
// The address sanitizer must know that the stack changes when a fiber is switched (fiber.h does that). The
// thread sanitizer sees every CUDA thread as a thread of its own; a switch of fibers orders nothing in its
// eyes, so two CUDA threads race unless a barrier, a warp collective, a fence or an atomic orders them, as on
// the chip. For that to hold, the layer's own bookkeeping, which all fibers share, has to be hidden from it.
#pragma once

#if defined(__SANITIZE_THREAD__)
#define SIMT_THREAD_SANITIZER 1
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
// Not inlined either: the body would be instrumented with its caller.
#define SIMT_UNTRACKED __attribute__((no_sanitize("thread"), noinline))
#else
#define SIMT_UNTRACKED
#endif

#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ADDRESS_SANITIZER 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {

// While one lives, the thread sanitizer ignores what the running fiber reads and writes. Its state belongs to
// the fiber, so it holds while the fiber is parked and does not spread to the fiber that runs meanwhile.
struct Bookkeeping {
#ifdef SIMT_THREAD_SANITIZER
  Bookkeeping() {
    AnnotateIgnoreReadsBegin("", 0);
    AnnotateIgnoreWritesBegin("", 0);
  }
  ~Bookkeeping() {
    AnnotateIgnoreWritesEnd("", 0);
    AnnotateIgnoreReadsEnd("", 0);
  }
#else
  ~Bookkeeping() {}  // a destructor of its own, else compilers call the variable unused
#endif
};

// Everything done before release(p) happens before everything done after a later acquire(p).
inline void release([[maybe_unused]] void* p) {
#ifdef SIMT_THREAD_SANITIZER
  __tsan_release(p);
#endif
}
inline void acquire([[maybe_unused]] void* p) {
#ifdef SIMT_THREAD_SANITIZER
  __tsan_acquire(p);
#endif
}

}  // namespace simt
