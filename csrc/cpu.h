// Help of the CPU side.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cmath>

// Of a function that each_simd.h has made, the one for this processor.
#ifdef __x86_64__
#define BEST_SIMD(function)                                                          \
  (__builtin_cpu_supports("avx512f") ? avx512::function                              \
   : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? avx2::function \
                                                                      : four_lanes::function)
#else
#define BEST_SIMD(function) four_lanes::function
#endif

namespace fastspeech {

// Four values; a vector register of any processor.
using Four __attribute__((vector_size(4 * sizeof(float)))) = float;

inline int64_t thread_index() {
  uint32_t index = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_thread_idx(&index));
  return index;
}

}  // namespace fastspeech
