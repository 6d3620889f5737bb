#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

struct grid_group {
  void sync() const {
    cuda_on_cpu::block->all.wait();
    if (cuda_on_cpu::block->running == 0) cuda_on_cpu::block->grid->arrive_and_wait();
    cuda_on_cpu::block->all.wait();
  }
};

inline grid_group this_grid() { return {}; }

}  // namespace cooperative_groups
