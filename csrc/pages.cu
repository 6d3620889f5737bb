// page_append and page_fork on CUDA: a block moves the heads of one token, or some of one page. Both are a launch and a
// few dependent reads long; what they move, at 4.3 TB/s, takes less than that.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda.h"

namespace fastspeech {
namespace {

constexpr int THREADS = 128;

template <class T>
cudaError_t launch(void (*kernel)(T), int64_t blocks, T argument, void* stream) {
  if (blocks == 0) return cudaSuccess;
  void* args[] = {&argument};
  return cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(THREADS), args, 0,
                          static_cast<cudaStream_t>(stream));
}

template <class T>
__global__ void __launch_bounds__(THREADS) append_token(const __grid_constant__ Append append) {
  const int64_t row = blockIdx.x / append.tokens, token = blockIdx.x % append.tokens;
  if (!append.real(row, token)) return;
  const int64_t position = append.positions[row] + token;
  const int64_t page = append.page(row, position), slot = append.slot(position);
  const int units = static_cast<int>(append.units());
  // Consecutive threads take consecutive units; a thread whose unit stays the same computes its turn once.
  for (int at = threadIdx.x; at < units * append.heads; at += THREADS) {
    const int unit = at % units, head = at / units;
    float sine = 0.f, cosine = 0.f;
    if (unit < append.pairs) sincosf(append.angle(position, unit), &sine, &cosine);
    const T* key = static_cast<const T*>(append.keys.tokens) + append.keys.of_tokens.at(row, token, head);
    T* key_to = static_cast<T*>(append.keys.pages) + append.keys.of_pages.at(page, head, slot);
    move_unit(append, unit, key, append.keys.of_tokens.of[3], key_to, append.keys.of_pages.of[3], true, cosine, sine);
    const T* value = static_cast<const T*>(append.values.tokens) + append.values.of_tokens.at(row, token, head);
    T* value_to = static_cast<T*>(append.values.pages) + append.values.of_pages.at(page, head, slot);
    move_unit(append, unit, value, append.values.of_tokens.of[3], value_to, append.values.of_pages.of[3], false, 0.f,
              0.f);
  }
}

template <class T>
__global__ void __launch_bounds__(THREADS) fork_page(const __grid_constant__ Fork fork) {
  const int64_t copy = blockIdx.x / fork.heads, head = blockIdx.x % fork.heads;
  if (!fork.real(copy)) return;
  T* pages = static_cast<T*>(fork.pages);
  const T* from = pages + fork.strides.at(fork.sources[copy], head, 0);
  T* to = pages + fork.strides.at(fork.targets[copy], head, 0);
  for (int64_t at = threadIdx.x; at < fork.slots * fork.dims; at += THREADS) {
    const int64_t value = at / fork.dims * fork.strides.of[2] + at % fork.dims * fork.strides.of[3];
    to[value] = from[value];
  }
}

}  // namespace

int page_append_launch(const Append& append, Element element, void* stream) {
  const auto kernel = element == Element::float32    ? append_token<float>
                      : element == Element::bfloat16 ? append_token<__nv_bfloat16>
                                                     : append_token<__half>;
  return launch(kernel, append.rows * append.tokens, append, stream);
}

int page_fork_launch(const Fork& fork, Element element, void* stream) {
  const auto kernel = element == Element::float32 ? fork_page<uint32_t> : fork_page<uint16_t>;
  return launch(kernel, fork.copies * fork.heads, fork, stream);
}

}  // namespace fastspeech
