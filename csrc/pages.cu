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

template <class T, class P>
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
    P* key_to = static_cast<P*>(append.keys.pages) + append.keys.of_pages.at(page, head, slot);
    const float* key_scale = append.keys.scales == nullptr ? nullptr : append.keys.scales + head;
    move_unit(append, unit, key, append.keys.of_tokens.of[3], key_to, append.keys.of_pages.of[3], key_scale, true,
              cosine, sine);
    const T* value = static_cast<const T*>(append.values.tokens) + append.values.of_tokens.at(row, token, head);
    P* value_to = static_cast<P*>(append.values.pages) + append.values.of_pages.at(page, head, slot);
    const float* value_scale = append.values.scales == nullptr ? nullptr : append.values.scales + head;
    move_unit(append, unit, value, append.values.of_tokens.of[3], value_to, append.values.of_pages.of[3], value_scale,
              false, 0.f, 0.f);
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

template <class T>
cudaError_t append_by(const Append& append, bool eight_bits, void* stream) {
  return launch(eight_bits ? append_token<T, E4M3> : append_token<T, T>, append.rows * append.tokens, append, stream);
}

}  // namespace

int page_append_launch(const Append& append, Element element, bool eight_bits, void* stream) {
  switch (element) {
    case Element::float32:
      return append_by<float>(append, eight_bits, stream);
    case Element::bfloat16:
      return append_by<__nv_bfloat16>(append, eight_bits, stream);
    default:
      return append_by<__half>(append, eight_bits, stream);
  }
}

int page_fork_launch(const Fork& fork, int64_t element_size, void* stream) {
  const auto kernel = element_size == 1   ? fork_page<uint8_t>
                      : element_size == 2 ? fork_page<uint16_t>
                                          : fork_page<uint32_t>;
  return launch(kernel, fork.copies * fork.heads, fork, stream);
}

}  // namespace fastspeech
