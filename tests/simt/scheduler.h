// Runs the blocks of a launch and, in each, the threads in turn, until all have returned.
//
// SIMT_ORDER chooses in which order threads and blocks run, since a correct kernel gives one result in all of
// them:
//   fwd   by rank (the default)         rev   from the last to the first
//   deep  the first threads run as far ahead of the others as barriers let them
//   <n>   shuffled, a different order for each number and block
#pragma once
#include <algorithm>
#include <numeric>
#include <tuple>
#include <utility>

#include "block.h"
#include "shared_memory.h"

namespace simt {

// Message of the last launch of this operating-system thread; empty when it went well.
inline std::string& last_error() {
  static thread_local std::string message;
  return message;
}

struct Order {
  bool reversed = false, deep = false;
  uint64_t shuffle = 0;
};
inline Order order_from_environment() {
  const char* text = getenv("SIMT_ORDER");
  const std::string name = text ? text : "fwd";
  Order order;
  if (name == "rev") {
    order.reversed = true;
  } else if (name == "deep") {
    order.deep = true;
  } else if (name != "fwd") {
    order.shuffle = strtoull(text, nullptr, 10) + 1;
  }
  return order;
}

inline std::vector<unsigned> thread_order(const Order& order, unsigned size, unsigned block) {
  std::vector<unsigned> ranks(size);
  std::iota(ranks.begin(), ranks.end(), 0u);
  if (order.reversed) std::reverse(ranks.begin(), ranks.end());
  if (order.shuffle != 0) {
    uint64_t state = order.shuffle * 0x9E3779B97F4A7C15ull + block;
    for (unsigned i = size; i > 1; i--) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      std::swap(ranks[i - 1], ranks[(state >> 33) % i]);
    }
  }
  return ranks;
}

inline uint3 unflatten(unsigned i, dim3 extent) {
  return {i % extent.x, i / extent.x % extent.y, i / extent.x / extent.y};
}

inline void begin_thread(Thread& thread, unsigned rank) {
  thread.rank = rank;
  thread.index = unflatten(rank, running->launch->block);
  thread.copies.clear();
  thread.copy_group = 0;
  thread.last_atomic = nullptr;
  thread.fenced = false;
}
inline void end_thread(unsigned rank) {
  running->alive--;
  Warp& warp = running->warps[rank / kWarpSize];
  warp.exited |= 1u << (rank % kWarpSize);
  running->barrier.complete_if_full(running->alive);
  for (auto& collective : warp.collectives) collective->complete_if_full(warp.exited);
}

// Takes the next thread of the block onto the calling fiber; false when none is left.
inline bool take_next_thread() {
  Bookkeeping hidden;
  if (running->next == running->size) return false;
  begin_thread(*running->current, running->order[running->next++]);
  return true;
}
inline void retire_thread() {
  Bookkeeping hidden;
  end_thread(running->current->rank);
}

// What a fiber does. One that never had to wait takes up the next thread itself, so that a kernel without
// barriers needs one fiber. Under the thread sanitizer each CUDA thread needs a fiber, which is its identity.
SIMT_UNTRACKED inline void fiber_main() {
  enter_fiber(running->scheduler);
  for (;;) {
    while (take_next_thread()) {
      const Launch* launch = running->launch;
      Block* block = running;
      acquire(const_cast<Launch*>(launch));
      launch->run_thread(launch->arguments);
      release(block);
      retire_thread();
#ifdef SIMT_THREAD_SANITIZER
      break;
#endif
    }
    running->current->started = false;
    return_to_scheduler();
  }
}

inline Thread& add_thread(Block& block) {
  auto thread = std::make_unique<Thread>();
  allocate_stack(thread->fiber);
  prepare_fiber(thread->fiber, &fiber_main, block.threads.size() * 320 % 4096);
  block.threads.push_back(std::move(thread));
  return *block.threads.back();
}

inline void resume(Block& block, Thread& thread) {
  block.current = &thread;
  switch_fiber(block.scheduler, thread.fiber);
}

inline void begin_block(Block& block, const Launch& launch, unsigned number, const Order& order) {
  block.launch = &launch;
  block.index = unflatten(number, launch.grid);
  block.size = block.alive = launch.block.x * launch.block.y * launch.block.z;
  block.next = 0;
  block.order = thread_order(order, block.size, number);
  block.barrier.arrived = 0;
  block.warps.resize((block.size + kWarpSize - 1) / kWarpSize);
  for (unsigned i = 0; i < block.warps.size(); i++) {
    const unsigned lanes = block.size - i * kWarpSize;
    block.warps[i].exited = lanes < kWarpSize ? ~0u << lanes : 0;
    for (auto& collective : block.warps[i].collectives) collective->arrived = 0;
  }
  reset_shared_memory(block);
#ifdef SIMT_THREAD_SANITIZER
  block.scheduler.identity = __tsan_get_current_fiber();
#endif
}

inline std::string deadlock_message(const Block& block, size_t first, size_t last) {
  std::string message = "deadlock: some threads wait where others never arrive:";
  int shown = 0;
  for (size_t i = first; i < last && shown < 4; i++) {
    const Thread& thread = *block.threads[i];
    if (!thread.started) continue;
    message += " thread " + std::to_string(thread.rank) + " at " + thread.operation + " (" +
               thread.location.file + ":" + std::to_string(thread.location.line) + ");";
    shown++;
  }
  return message;
}

// Resumes whoever can run; true when somebody could.
inline bool resume_waiting(Block& block, size_t first, size_t last, bool deep) {
  bool progress = false;
  for (size_t i = first; i < last && block.error.empty(); i++) {
    Thread& thread = *block.threads[i];
    if (!thread.started || (thread.generation != nullptr && *thread.generation == thread.awaited)) continue;
    progress = true;
    resume(block, thread);
    if (deep && !thread.pausing) i = first - 1;  // a loop that waits for others must let them run
  }
  return progress;
}

inline void run_block(Block& block, [[maybe_unused]] unsigned number, const Order& order) {
  size_t first = 0;
#ifdef SIMT_THREAD_SANITIZER
  // Thread t of neighbouring blocks must be two identities, else the one would seem to run after the other.
  if (number % 2 == 1) first = block.size;
#endif
  size_t last = first;
  while (block.threads.size() < first) add_thread(block);
  while (block.alive != 0 && block.error.empty()) {
    bool progress = resume_waiting(block, first, last, order.deep);
    while (block.next < block.size && block.error.empty()) {
      Thread& thread = last < block.threads.size() ? *block.threads[last] : add_thread(block);
      last++;
      thread.started = progress = true;
      resume(block, thread);
    }
    if (!progress) block.error = deadlock_message(block, first, last);
  }
}

inline void report_failure(Block& block) {
  const uint3 at = block.index;
  last_error() = block.error + " [block " + std::to_string(at.x) + "," + std::to_string(at.y) + "," +
                 std::to_string(at.z) + "]";
#ifdef SIMT_THREAD_SANITIZER
  fprintf(stderr, "launch error: %s\n", last_error().c_str());
  _Exit(66);
#endif
  for (auto& thread : block.threads) {
    prepare_fiber(thread->fiber, &fiber_main, 0);
    thread->started = false;
    thread->generation = nullptr;
  }
  block.error.clear();
}

inline void run_launch(Launch& launch) {
  last_error().clear();
  const uint64_t blocks = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
  const uint64_t threads = uint64_t(launch.block.x) * launch.block.y * launch.block.z;
  if (blocks == 0 || blocks > 0x7fffffff || threads == 0 || threads > kMaxThreads) {
    last_error() = "invalid launch configuration";
  } else if (launch.shared_bytes > size_t(227) << 10) {
    last_error() = "more dynamic shared memory than the 227 KiB of sm_90";
  }
  if (!last_error().empty()) return;
  static thread_local Block block;
  const Order order = order_from_environment();
  release(&launch);
  {
    Bookkeeping hidden;
    running = &block;
    for (uint64_t i = 0; i < blocks && last_error().empty(); i++) {
      const unsigned number = unsigned(order.reversed ? blocks - 1 - i : i);
      begin_block(block, launch, number, order);
      run_block(block, number, order);
      if (!block.error.empty()) report_failure(block);
    }
    running = nullptr;
  }
  acquire(&block);
}

// kernel<<<grid, block, shared_bytes, stream>>>(arguments...), finished on return.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, const void* /*stream*/,
            Arguments&&... arguments) {
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  } call{kernel, std::tuple<Parameters...>(static_cast<Parameters>(std::forward<Arguments>(arguments))...)};
  const auto run_thread = [](void* pointer) {
    const Call* call = static_cast<Call*>(pointer);
    std::apply(call->kernel, call->arguments);
  };
  Launch launch{grid, block, shared_bytes, run_thread, &call};
  run_launch(launch);
}

}  // namespace simt
