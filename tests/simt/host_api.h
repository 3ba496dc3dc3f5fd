// The part of CUDA's host interface that launchers use. Memory is the processor's, and a launch has finished
// when it returns, so copies are plain and there is nothing to wait for.
#pragma once
#include <cstring>

#include "scheduler.h"

#define cudaGetLastError() (simt::last_error().empty() ? cudaSuccess : cudaErrorLaunchFailure)
#define cudaGetErrorString(error) ((error) == cudaSuccess ? "no error" : simt::last_error().c_str())
#define cudaFuncSetAttribute(kernel, attribute, value) ((void)(kernel), (void)(value), cudaSuccess)
#define cudaMemsetAsync(address, value, bytes, stream) \
  ((void)(stream), memset(address, value, bytes), cudaSuccess)
#define cudaMemcpyAsync(to, from, bytes, kind, stream) ((void)(stream), memcpy(to, from, bytes), cudaSuccess)
#define cudaStreamSynchronize(stream) ((void)(stream), cudaSuccess)
