// The CUDA side without PyTorch, whose headers nvcc does not read. Pointers are the device's; results are a cudaError_t.
#pragma once

#include "pages.h"
#include "residual_vq.h"

namespace fastspeech {

enum class Element { float32, bfloat16, float16 };

// latents (groups, vectors, dim), choices room for (levels, vectors), codes (vectors, levels).
int residual_vq_launch(const float* latents, const Codebooks& codebooks, const int64_t* splits, int groups,
                       int64_t vectors, int64_t* choices, int64_t* codes, void* stream);

// eight_bits: whether pages hold E4M3.
int page_append_launch(const Append& append, Element element, bool eight_bits, void* stream);

int page_fork_launch(const Fork& fork, int64_t element_size, void* stream);

const char* cuda_message(int error);

}  // namespace fastspeech
