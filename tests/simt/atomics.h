// Atomics, relaxed as in CUDA, on operands of 2, 4 and 8 bytes; fences; the pause for spin loops.
#pragma once
#include <cstring>
#include <type_traits>

#include "block.h"

namespace simt {

// As in PTX, two threads are ordered by: write, fence, atomic in the one; atomic on that address, fence, read
// in the other. So an atomic after a fence releases its address, and a fence after an atomic acquires that
// address.
SIMT_UNTRACKED inline void fence() {
  Thread* self = running->current;
  if (self->last_atomic != nullptr) acquire(self->last_atomic);
  self->fenced = true;
}
SIMT_UNTRACKED inline void note_atomic(void* address) {
  Thread* self = running->current;
  if (self->fenced) release(address);
  self->last_atomic = address;
}

template <class T>
using Bits =
    std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;

// Replaces *address by update(*address) and returns what was there. An atomic operation of the processor,
// though fibers need none: it tells the thread sanitizer that this access is atomic and a plain one beside it
// is a race.
template <class T, class Update>
T read_modify_write(T* address, Update update) {
  static_assert(sizeof(T) == sizeof(Bits<T>), "atomics take operands of 2, 4 or 8 bytes");
  note_atomic(address);
  auto* bits = reinterpret_cast<Bits<T>*>(address);
  Bits<T> old_bits = __atomic_load_n(bits, __ATOMIC_RELAXED), new_bits;
  T old_value, new_value;
  do {
    memcpy(&old_value, &old_bits, sizeof old_value);
    new_value = update(old_value);
    memcpy(&new_bits, &new_value, sizeof new_bits);
  } while (!__atomic_compare_exchange_n(bits, &old_bits, new_bits, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old_value;
}

// Lets other threads run: a fiber that spins would otherwise spin for ever.
inline void pause() {
  Bookkeeping hidden;
  Thread* self = running->current;
  self->pausing = true;
  return_to_scheduler();
  self->pausing = false;
}

template <class T>
struct Same {
  using type = T;
};
template <class T>
using Operand = typename Same<T>::type;  // takes no part in deducing T, so that atomicAdd(&u, 1) compiles

}  // namespace simt

inline void __threadfence() { simt::fence(); }
inline void __threadfence_block() { simt::fence(); }
#define __nanosleep(nanoseconds) ((void)(nanoseconds), simt::pause())

template <class T>
T atomicAdd(T* address, simt::Operand<T> value) {
  return simt::read_modify_write(address, [value](T old) { return T(old + value); });
}
template <class T>
T atomicMax(T* address, simt::Operand<T> value) {
  return simt::read_modify_write(address, [value](T old) { return old > value ? old : value; });
}
template <class T>
T atomicMin(T* address, simt::Operand<T> value) {
  return simt::read_modify_write(address, [value](T old) { return old < value ? old : value; });
}
template <class T>
T atomicOr(T* address, simt::Operand<T> value) {
  return simt::read_modify_write(address, [value](T old) { return T(old | value); });
}
template <class T>
T atomicAnd(T* address, simt::Operand<T> value) {
  return simt::read_modify_write(address, [value](T old) { return T(old & value); });
}
template <class T>
T atomicXor(T* address, simt::Operand<T> value) {
  return simt::read_modify_write(address, [value](T old) { return T(old ^ value); });
}
template <class T>
T atomicExch(T* address, simt::Operand<T> value) {
  return simt::read_modify_write(address, [value](T) { return value; });
}
template <class T>
T atomicCAS(T* address, simt::Operand<T> expected, simt::Operand<T> value) {
  return simt::read_modify_write(address, [=](T old) { return old == expected ? value : old; });
}
