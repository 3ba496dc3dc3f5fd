// The state of the thread block that runs. Blocks of a launch run one after another; within a block, the
// threads take turns as fibers. A thread runs until it has to wait, so a kernel without barriers is a plain
// loop over threads.
#pragma once
#include <vector_types.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"

namespace simt {

constexpr unsigned kWarpSize = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr size_t kMaxValueBytes = 16;  // largest type that a shuffle may carry

struct Location {
  const char* file = "";
  int line = 0;
  bool operator==(const Location& other) const {
    return line == other.line && (file == other.file || std::string(file) == other.file);
  }
};
#define SIMT_HERE \
  simt::Location { __FILE__, __LINE__ }

struct AsyncCopy {
  void* destination;
  const void* source;
  size_t bytes, zero_fill;
  unsigned group;
};

// A fiber and the CUDA thread that it runs now.
struct Thread {
  Fiber fiber;
  unsigned rank = 0;  // number within the block
  uint3 index{};
  bool started = false, pausing = false;

  // Waiting ends when *generation differs from `awaited`; null while the thread can run.
  const unsigned* generation = nullptr;
  unsigned awaited = 0;
  const char* operation = "";
  Location location;

  std::vector<AsyncCopy> copies;
  unsigned copy_group = 0;
  void* last_atomic = nullptr;  // atomics.h: how fences and atomics pair up
  bool fenced = false;
};

// __syncthreads. Two generations alternate: threads may leave one while the first arrive at the next.
struct Barrier {
  unsigned arrived = 0, generation = 0;
  Location location;
  struct Votes {
    int count, any, all;
  } votes[2] = {};

  void complete_if_full(unsigned alive) {
    if (arrived == 0 || arrived != alive) return;
    arrived = 0;
    generation++;
  }
};

// One warp operation among the lanes of one mask; double-buffered like the barrier.
struct Collective {
  unsigned mask = 0, arrived = 0, generation = 0;
  Location location;
  unsigned participants[2] = {};
  alignas(16) unsigned char slots[2][kWarpSize][kMaxValueBytes];

  void complete_if_full(unsigned exited) {
    if (arrived == 0 || ((arrived | exited) & mask) != mask) return;
    participants[generation & 1] = arrived;
    arrived = 0;
    generation++;
  }
};

struct Warp {
  unsigned exited = 0;  // lanes that returned from the kernel, or that a partial warp lacks
  std::vector<std::unique_ptr<Collective>> collectives;
};

struct FreeDeleter {
  void operator()(unsigned char* p) const { free(p); }
};
using Buffer = std::unique_ptr<unsigned char, FreeDeleter>;

// Exactly as long as asked, so that the address sanitizer's red zone begins at the first byte beyond.
inline Buffer allocate(size_t bytes) {
  void* p = nullptr;
  if (bytes != 0 && posix_memalign(&p, 16, bytes) != 0) abort();
  return Buffer(static_cast<unsigned char*>(p));
}

struct SharedArray {
  const void* declaration;
  Buffer memory;
  size_t bytes;
};

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  void (*run_thread)(void* arguments);
  void* arguments;
};

struct Block {
  const Launch* launch = nullptr;
  uint3 index{};
  unsigned size = 0, next = 0,
           alive = 0;  // threads; position in `order` of the next to start; not yet returned
  std::vector<unsigned> order;
  Barrier barrier;
  std::vector<Warp> warps;
  std::vector<SharedArray> shared_arrays;
  Buffer dynamic_shared;

  std::vector<std::unique_ptr<Thread>> threads;
  Thread* current = nullptr;
  Fiber scheduler;
  std::string error;

  ~Block() {
    for (auto& thread : threads) release_stack(thread->fiber);
  }
};

// The block that the kernel code running on this operating-system thread belongs to.
inline thread_local Block* running = nullptr;

SIMT_UNTRACKED inline void return_to_scheduler() {
  Thread* self = running->current;
  running->current = nullptr;
  switch_fiber(self->fiber, running->scheduler);
}

// Stops the calling thread until *generation moves on from the value it has.
SIMT_UNTRACKED inline void wait_for(const unsigned* generation, const char* operation, Location location) {
  Thread* self = running->current;
  self->generation = generation;
  self->awaited = *generation;
  self->operation = operation;
  self->location = location;
  return_to_scheduler();
  self->generation = nullptr;
}

// Gives the launch up with a message: cudaGetLastError() then reports it. Under the thread sanitizer the
// process ends at once, because fibers that never finish would be reported as leaks.
[[noreturn]] inline void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
[[noreturn]] inline void fail(const char* format, ...) {
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
#ifdef SIMT_THREAD_SANITIZER
  fprintf(stderr, "launch error: %s\n", message);
  _Exit(66);
#endif
  if (running->error.empty()) running->error = message;
  for (;;) return_to_scheduler();  // never resumed: the scheduler gives up and resets the fiber
}

}  // namespace simt
