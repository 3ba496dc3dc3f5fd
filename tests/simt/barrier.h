// __syncthreads and its voting variants.
#pragma once
#include "block.h"

namespace simt {

inline Barrier::Votes& cast_vote(Barrier& barrier, bool vote) {
  Barrier::Votes& votes = barrier.votes[barrier.generation & 1];
  if (barrier.arrived == 0) votes = {0, 0, 1};
  votes.count += vote;
  votes.any |= vote;
  votes.all &= vote;
  return votes;
}

// Waits for every thread of the block that has not returned from the kernel. All must wait at one line: a
// barrier that some threads pass elsewhere is undefined behaviour on the chip, whatever a given chip does
// with it.
inline Barrier::Votes sync_threads(bool vote, Location location) {
  Barrier::Votes* votes;
  {
    Bookkeeping hidden;
    Barrier& barrier = running->barrier;
    if (barrier.arrived == 0) {
      barrier.location = location;
    } else if (!(barrier.location == location)) {
      fail("divergent __syncthreads: %s:%d and %s:%d in one block", barrier.location.file,
           barrier.location.line, location.file, location.line);
    }
    votes = &cast_vote(barrier, vote);
    barrier.arrived++;
  }
  // The address stands for the generation's parity. One address for all generations would let a thread that
  // leaves late acquire what others did after the barrier, and so hide races.
  release(votes);
  {
    Bookkeeping hidden;
    Barrier& barrier = running->barrier;
    const unsigned generation = barrier.generation;
    barrier.complete_if_full(running->alive);
    if (barrier.generation == generation) wait_for(&barrier.generation, "__syncthreads", location);
  }
  acquire(votes);
  Bookkeeping hidden;
  return *votes;
}

}  // namespace simt

#define __syncthreads() ((void)simt::sync_threads(false, SIMT_HERE))
#define __syncthreads_count(predicate) (simt::sync_threads((predicate) != 0, SIMT_HERE).count)
#define __syncthreads_or(predicate) (simt::sync_threads((predicate) != 0, SIMT_HERE).any)
#define __syncthreads_and(predicate) (simt::sync_threads((predicate) != 0, SIMT_HERE).all)
