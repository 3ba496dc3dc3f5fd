// Fetches what is needed next into the second cache, a little at each step of what is computed meanwhile.
#pragma once
#include "simd.h"

namespace fastgen::FASTGEN_ISA {

class Ahead {
 public:
  // All of the `bytes` from `begin` on are asked for within `steps` steps. They need not be there.
  Ahead(const void* begin, int64_t bytes, int64_t steps)
      : at_(static_cast<const char*>(begin)),
        due_(at_),
        end_(at_ + bytes),
        stride_((bytes + steps - 1) / (steps > 0 ? steps : 1)) {}

  FASTGEN_MEMBER void step() {
    due_ = due_ + stride_ < end_ ? due_ + stride_ : end_;
    for (; at_ < due_; at_ += 64) __builtin_prefetch(at_, 0, 2);
  }

 private:
  const char *at_, *due_, *end_;
  int64_t stride_;
};

}  // namespace fastgen::FASTGEN_ISA
