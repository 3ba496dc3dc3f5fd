// Warp operations: __syncwarp, shuffles, votes, match and reductions. Each is an exchange: every lane of the
// mask writes its value to its slot and waits for the others; then each reads the slots that it wants.
#pragma once
#include <cstring>
#include <type_traits>

#include "block.h"

namespace simt {

SIMT_UNTRACKED inline unsigned lane() { return running->current->rank % kWarpSize; }
SIMT_UNTRACKED inline Warp& warp() { return running->warps[running->current->rank / kWarpSize]; }

inline Collective& collective_of(Warp& warp, unsigned mask) {
  for (auto& collective : warp.collectives)
    if (collective->mask == mask) return *collective;
  warp.collectives.push_back(std::make_unique<Collective>());
  warp.collectives.back()->mask = mask;
  return *warp.collectives.back();
}

inline void check_site(Collective& collective, const char* operation, Location location) {
  if (!(collective.mask >> lane() & 1)) {
    fail("%s:%d: %s: lane %u is not in its own mask 0x%08x", location.file, location.line, operation, lane(),
         collective.mask);
  }
  if (collective.arrived == 0) {
    collective.location = location;
  } else if (!(collective.location == location)) {
    fail("divergent warp operation: %s:%d meets %s:%d (mask 0x%08x)", location.file, location.line,
         collective.location.file, collective.location.line, collective.mask);
  }
}

// The values that the lanes of `mask` brought. They stay until every lane has arrived at the operation after
// next.
class Exchange {
 public:
  Exchange(unsigned mask, const void* value, size_t bytes, const char* operation, Location location)
      : mask_(mask), operation_(operation), location_(location) {
    Bookkeeping hidden;
    Collective& collective = collective_of(warp(), mask);
    check_site(collective, operation, location);
    const unsigned generation = collective.generation;
    slots_ = collective.slots[generation & 1];
    lanes_ = &collective.participants[generation & 1];
    if (collective.arrived == 0) memset(slots_, 0xFF, sizeof collective.slots[0]);
    if (bytes != 0) memcpy(slots_[lane()], value, bytes);
    collective.arrived |= 1u << lane();
    collective.complete_if_full(warp().exited);
    if (collective.generation == generation) wait_for(&collective.generation, operation, location);
  }

  // The lanes that took part: those of the mask, less those that left the kernel before.
  unsigned lanes() const {
    Bookkeeping hidden;
    return *lanes_;
  }

  template <class T>
  T from(unsigned source) const {
    Bookkeeping hidden;
    if (!(mask_ >> source & 1)) {
      fail("%s:%d: %s reads lane %u outside its mask 0x%08x", location_.file, location_.line, operation_,
           source, mask_);
    }
    T value;
    memcpy(&value, slots_[source], sizeof value);
    return value;
  }

 private:
  unsigned mask_;
  const char* operation_;
  Location location_;
  unsigned char (*slots_)[kMaxValueBytes];
  const unsigned* lanes_;
};

template <class T>
Exchange exchange(unsigned mask, const T& value, const char* operation, Location location) {
  static_assert(sizeof(T) <= kMaxValueBytes && std::is_trivially_copyable<T>::value,
                "type of a warp operation");
  return Exchange(mask, &value, sizeof value, operation, location);
}

// Orders memory among the lanes; the other operations, as in CUDA, promise an exchange of values and no more.
inline void sync_warp(unsigned mask, Location location) {
  void* parity;
  {
    Bookkeeping hidden;
    Collective& collective = collective_of(warp(), mask);
    parity = collective.slots[collective.generation & 1];
  }
  release(parity);
  Exchange(mask, nullptr, 0, "__syncwarp", location);
  acquire(parity);
}

// Shuffles: `width` cuts the warp into segments; a source outside the own segment means the own value.
template <class T>
T shuffle(Location location, unsigned mask, T value, int source, int width = kWarpSize) {
  const Exchange values = exchange(mask, value, "__shfl_sync", location);
  return values.from<T>((lane() & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
T shuffle_up(Location location, unsigned mask, T value, unsigned delta, int width = kWarpSize) {
  const Exchange values = exchange(mask, value, "__shfl_up_sync", location);
  const int source = int(lane()) - int(delta), first = int(lane() & ~(width - 1));
  return values.from<T>(source < first ? lane() : source);
}
template <class T>
T shuffle_down(Location location, unsigned mask, T value, unsigned delta, int width = kWarpSize) {
  const Exchange values = exchange(mask, value, "__shfl_down_sync", location);
  const unsigned source = lane() + delta, last = lane() | (width - 1);
  return values.from<T>(source > last ? lane() : source);
}
template <class T>
T shuffle_xor(Location location, unsigned mask, T value, int lane_mask, int width = kWarpSize) {
  const Exchange values = exchange(mask, value, "__shfl_xor_sync", location);
  const unsigned source = lane() ^ lane_mask, last = lane() | (width - 1);
  return values.from<T>(source > last ? lane() : source);
}

inline unsigned ballot(Location location, unsigned mask, bool predicate) {
  const Exchange values = exchange(mask, int(predicate), "__ballot_sync", location);
  unsigned result = 0;
  for (unsigned i = 0; i < kWarpSize; i++)
    if ((values.lanes() >> i & 1) && values.from<int>(i) == 1) result |= 1u << i;
  return result;
}
template <class T>
unsigned match_any(Location location, unsigned mask, T value) {
  const Exchange values = exchange(mask, value, "__match_any_sync", location);
  unsigned result = 0;
  for (unsigned i = 0; i < kWarpSize; i++)
    if ((values.lanes() >> i & 1) && values.from<T>(i) == value) result |= 1u << i;
  return result;
}
template <class T, class Operation>
T reduce(Location location, unsigned mask, T value, Operation operation) {
  const Exchange values = exchange(mask, value, "__reduce_sync", location);
  for (unsigned i = 0; i < kWarpSize; i++)
    if (i != lane() && (values.lanes() >> i & 1)) value = operation(value, values.from<T>(i));
  return value;
}

}  // namespace simt

#define warpSize 32
#define __shfl_sync(...) simt::shuffle(SIMT_HERE, __VA_ARGS__)
#define __shfl_up_sync(...) simt::shuffle_up(SIMT_HERE, __VA_ARGS__)
#define __shfl_down_sync(...) simt::shuffle_down(SIMT_HERE, __VA_ARGS__)
#define __shfl_xor_sync(...) simt::shuffle_xor(SIMT_HERE, __VA_ARGS__)
#define __ballot_sync(mask, predicate) simt::ballot(SIMT_HERE, mask, (predicate) != 0)
#define __any_sync(mask, predicate) (simt::ballot(SIMT_HERE, mask, (predicate) != 0) != 0)
#define __all_sync(mask, predicate) (simt::ballot(SIMT_HERE, mask, (predicate) == 0) == 0)
#define __match_any_sync(mask, value) simt::match_any(SIMT_HERE, mask, value)
#define __reduce_add_sync(mask, value) \
  simt::reduce(SIMT_HERE, mask, value, [](auto a, auto b) { return a + b; })
#define __reduce_or_sync(mask, value) \
  simt::reduce(SIMT_HERE, mask, value, [](auto a, auto b) { return a | b; })
#define __reduce_min_sync(mask, value) \
  simt::reduce(SIMT_HERE, mask, value, [](auto a, auto b) { return a < b ? a : b; })
#define __reduce_max_sync(mask, value) \
  simt::reduce(SIMT_HERE, mask, value, [](auto a, auto b) { return a > b ? a : b; })
inline unsigned simt_mask(unsigned mask = 0xffffffffu) { return mask; }  // __syncwarp() means all lanes
#define __syncwarp(...) simt::sync_warp(simt_mask(__VA_ARGS__), SIMT_HERE)
