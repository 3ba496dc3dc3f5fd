// Numbers of the streams that kernels draw from, as fastgen/random.py names them (a test compares the two).
#pragma once
#include <cstdint>

namespace fastgen {

constexpr uint32_t kIsingStream = 16, kRbmGibbsStream = 19, kRbmVisibleNoiseStream = 20, kTokenStream = 30,
                   kDropoutStream = 33;

}  // namespace fastgen
