// How numbers lie in memory.
#pragma once

namespace fastgen {

enum class Storage { float32, float64, bfloat16 };

}  // namespace fastgen
