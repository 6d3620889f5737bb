// Help of the CPU side.
#pragma once

#include <torch/csrc/stable/ops.h>

namespace fastspeech {

inline int64_t thread_index() {
  uint32_t index = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_thread_idx(&index));
  return index;
}

}  // namespace fastspeech
