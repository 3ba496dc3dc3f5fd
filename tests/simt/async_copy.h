// Asynchronous copies into shared memory (cp.async). The chip copies at some time between the call and the
// wait; the layer does either extreme: at the wait, so that a missing wait shows (SIMT_ASYNC=late, the
// default), or at the call, so that a tile overwritten too early shows (SIMT_ASYNC=eager). Test both.
#pragma once
#include <cstring>

#include "block.h"

namespace simt {

inline void carry_out(const AsyncCopy& copy) {
  const size_t copied = copy.bytes - copy.zero_fill;
  memcpy(copy.destination, copy.source, copied);
  if (copy.zero_fill != 0) memset(static_cast<char*>(copy.destination) + copied, 0, copy.zero_fill);
}
inline bool copies_are_eager() {
  const char* mode = getenv("SIMT_ASYNC");
  return mode != nullptr && strcmp(mode, "eager") == 0;
}

inline void copy_async(void* destination, const void* source, size_t bytes, size_t zero_fill) {
  AsyncCopy copy{destination, source, bytes, zero_fill, 0};
  if (copies_are_eager()) return carry_out(copy);
  Bookkeeping hidden;
  copy.group = running->current->copy_group;
  running->current->copies.push_back(copy);
}
inline void commit_copies() {
  Bookkeeping hidden;
  running->current->copy_group++;
}
// Carries out all but the `groups` youngest committed groups.
inline void wait_copies(size_t groups) {
  std::vector<AsyncCopy> due;
  {
    Bookkeeping hidden;
    std::vector<AsyncCopy>& copies = running->current->copies;
    size_t count = 0;
    while (count < copies.size() && copies[count].group + groups < running->current->copy_group) count++;
    due.assign(copies.begin(), copies.begin() + count);
    copies.erase(copies.begin(), copies.begin() + count);
  }
  for (const AsyncCopy& copy : due) carry_out(copy);  // outside: these accesses are the kernel's
}

}  // namespace simt

inline void __pipeline_memcpy_async(void* destination, const void* source, size_t bytes,
                                    size_t zero_fill = 0) {
  simt::copy_async(destination, source, bytes, zero_fill);
}
inline void __pipeline_commit() { simt::commit_copies(); }
inline void __pipeline_wait_prior(size_t groups) { simt::wait_copies(groups); }
