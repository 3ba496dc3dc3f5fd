// Shared memory. Filled with 0xFF at the start of each block (NaN, -1), so that a kernel that reads what it
// never wrote shows it; each array ends where its declaration ends, so that the address sanitizer sees a step
// beyond.
#pragma once
#include <cstring>

#include "block.h"

namespace simt {

// One array per declaration: the type of `Declaration`, a lambda written there, is different in each.
template <class T, class Declaration>
T* shared_array(size_t count, Declaration) {
  static const char declaration = 0;
  Bookkeeping hidden;
  for (auto& array : running->shared_arrays)
    if (array.declaration == &declaration) return reinterpret_cast<T*>(array.memory.get());
  running->shared_arrays.push_back({&declaration, allocate(count * sizeof(T)), count * sizeof(T)});
  SharedArray& array = running->shared_arrays.back();
  memset(array.memory.get(), 0xFF, array.bytes);
  return reinterpret_cast<T*>(array.memory.get());
}

SIMT_UNTRACKED inline void* dynamic_shared() { return running->dynamic_shared.get(); }

// For each block anew: memory that was freed and allocated again carries no history for the thread sanitizer,
// so blocks do not seem to race for what on the chip are different arrays.
inline void reset_shared_memory(Block& block) {
  block.shared_arrays.clear();
  const size_t bytes = block.launch->shared_bytes;
  block.dynamic_shared = allocate(bytes);
  if (bytes != 0) memset(block.dynamic_shared.get(), 0xFF, bytes);
}

}  // namespace simt
