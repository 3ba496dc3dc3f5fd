#pragma once

namespace fastgen::cuda {

// What a launcher's return value means, in CUDA's words.
const char* error_string(int code);

}  // namespace fastgen::cuda
