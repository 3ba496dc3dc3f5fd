// The part of CUDA's host interface that launchers use. Memory is the processor's, and a launch has finished
// when it returns, so copies are plain and there is nothing to wait for.
#pragma once
#include <cstring>

#include "scheduler.h"

namespace simt {

// What the device offers a block: that of sm_90, or SIMT_SHARED_KB, so that tests see what a kernel does with
// less.
inline int device_attribute(cudaDeviceAttr attribute) {
  if (attribute != cudaDevAttrMaxSharedMemoryPerBlockOptin) return 0;
  const char* kilobytes = getenv("SIMT_SHARED_KB");
  return (kilobytes != nullptr ? atoi(kilobytes) : 227) << 10;
}

}  // namespace simt

#define cudaGetLastError() (simt::last_error().empty() ? cudaSuccess : cudaErrorLaunchFailure)
#define cudaGetErrorString(error) ((error) == cudaSuccess ? "no error" : simt::last_error().c_str())
#define cudaGetDevice(device) (*(device) = 0, cudaSuccess)
#define cudaDeviceGetAttribute(value, attribute, device) \
  ((void)(device), *(value) = simt::device_attribute(attribute), cudaSuccess)
#define cudaFuncSetAttribute(kernel, attribute, value) ((void)(kernel), (void)(value), cudaSuccess)
#define cudaMemsetAsync(address, value, bytes, stream) \
  ((void)(stream), memset(address, value, bytes), cudaSuccess)
#define cudaMemcpyAsync(to, from, bytes, kind, stream) ((void)(stream), memcpy(to, from, bytes), cudaSuccess)
#define cudaStreamSynchronize(stream) ((void)(stream), cudaSuccess)
