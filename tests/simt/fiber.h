// Fibers: stacks that take turns on one thread of the operating system. A CUDA thread runs on one, so that it
// can stop in the middle of a kernel, at a barrier, and go on later.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>

#include "sanitizers.h"

#if defined(__x86_64__) && !defined(SIMT_PORTABLE)
#define SIMT_X86_64 1
#else
#include <ucontext.h>  // slower: every switch sets the signal mask by a system call
#endif

namespace simt {

struct Fiber {
  char* stack = nullptr;  // lowest address; null for the fiber that the operating system started
  size_t stack_bytes = 0;
#ifdef SIMT_X86_64
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
#ifdef SIMT_THREAD_SANITIZER
  void* identity = nullptr;
#endif
#ifdef SIMT_ADDRESS_SANITIZER
  void* fake_stack = nullptr;
#endif
};

#ifdef SIMT_X86_64
// Saves what a call must preserve and the stack pointer, takes the other fiber's, and returns into that
// fiber. The jump instead of a return spares the processor a mispredicted return.
__attribute__((naked, noinline, used)) static void switch_stack(void** /*save*/, void* /*load*/) {
  __asm__(
      "pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15;"
      "movq %rsp, (%rdi); movq %rsi, %rsp;"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp;"
      "popq %rdx; jmp *%rdx");
}
#endif

// Leaves `from`, which runs, and goes on in `to`; returns when somebody switches back to `from`.
SIMT_UNTRACKED inline void switch_fiber(Fiber& from, Fiber& to) {
#ifdef SIMT_ADDRESS_SANITIZER
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
#endif
#ifdef SIMT_THREAD_SANITIZER
  __tsan_switch_to_fiber(to.identity, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef SIMT_X86_64
  switch_stack(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
#ifdef SIMT_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// First call of a fiber's entry function. `caller` learns the bounds of its stack, which only the sanitizer
// knows.
inline void enter_fiber([[maybe_unused]] Fiber& caller) {
#ifdef SIMT_ADDRESS_SANITIZER
  const void* bottom = nullptr;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &caller.stack_bytes);
  caller.stack = static_cast<char*>(const_cast<void*>(bottom));
#endif
}

// Sets a fiber to start `entry` (which never returns) at its next switch. `skew` shifts the top of the stack:
// with all tops at one offset within a page, the fibers of a block would share one set of the cache.
inline void prepare_fiber(Fiber& fiber, void (*entry)(), [[maybe_unused]] size_t skew) {
#ifdef SIMT_ADDRESS_SANITIZER
  __asan_unpoison_memory_region(fiber.stack, fiber.stack_bytes);
#endif
#ifdef SIMT_X86_64
  constexpr int kSavedRegisters = 6;
  void** top = reinterpret_cast<void**>(fiber.stack + fiber.stack_bytes - 64 - skew);
  *--top = nullptr;  // the entry's return address; also gives the alignment that a call would give
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; i++) *--top = nullptr;
  fiber.stack_pointer = top;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = fiber.stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
#endif
}

inline void allocate_stack(Fiber& fiber) {
#if defined(SIMT_THREAD_SANITIZER) || defined(SIMT_ADDRESS_SANITIZER)
  fiber.stack_bytes = size_t(512) << 10;  // instrumented frames are several times larger
#else
  fiber.stack_bytes = size_t(128) << 10;
#endif
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* memory = mmap(nullptr, fiber.stack_bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (memory == MAP_FAILED) abort();
  fiber.stack = static_cast<char*>(memory);
  mprotect(fiber.stack, 4096, PROT_NONE);  // an overflow faults instead of reaching the next fiber
#ifdef SIMT_THREAD_SANITIZER
  fiber.identity = __tsan_create_fiber(0);
#endif
}

inline void release_stack(Fiber& fiber) {
  munmap(fiber.stack, fiber.stack_bytes);
#ifdef SIMT_THREAD_SANITIZER
  __tsan_destroy_fiber(fiber.identity);
#endif
}

}  // namespace simt
