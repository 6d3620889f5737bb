// The CPU side as csrc/ops.cpp registers it, made of the CUDA side.
#include "../../../csrc/ops.h"

#include <cuda_runtime.h>

#include "../../../csrc/tensors.h"

namespace fastspeech {
namespace {
// What kernels declare as their dynamic shared memory.
__thread float4 shared[(96 << 10) / sizeof(float4)];
}  // namespace
}  // namespace fastspeech

#include "../../../csrc/pages.cu"
#include "../../../csrc/residual_vq.cu"

namespace fastspeech {
namespace {

static_assert(sizeof shared == SHARED);

using torch::headeronly::ScalarType;

void check(int error) { STD_TORCH_CHECK(error == 0, cuda_message(error)); }

Element element_of(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  return type == ScalarType::Float ? Element::float32 : type == ScalarType::Half ? Element::float16 : Element::bfloat16;
}

}  // namespace

void residual_vq_cpu(const Tensor& latents, const Tensor& codebooks, const std::vector<int64_t>& splits,
                     const Tensor& codes, const std::optional<Tensor>&) {
  std::vector<int64_t> choices(codes.numel());
  check(residual_vq_launch(latents.const_data_ptr<float>(), codebooks_of(codebooks), splits.data(), splits.size(),
                           latents.size(1), choices.data(), codes.mutable_data_ptr<int64_t>(), nullptr));
}

void page_append_cpu(const Tensor& keys, const Tensor& values, const Tensor& key_pages, const Tensor& value_pages,
                     const std::optional<Tensor>& table, const Tensor& positions, const std::optional<Tensor>& counts,
                     const std::optional<Tensor>& inv_freq, bool interleaved, const std::optional<Tensor>& key_scales,
                     const std::optional<Tensor>& value_scales) {
  check(page_append_launch(append_of(keys, values, key_pages, value_pages, table, positions, counts, inv_freq,
                                     interleaved, key_scales, value_scales),
                           element_of(keys), key_pages.element_size() == 1, nullptr));
}

void page_fork_cpu(const Tensor& key_pages, const Tensor& value_pages, const Tensor& sources, const Tensor& targets) {
  for (const Tensor* pages : {&key_pages, &value_pages})
    check(page_fork_launch(fork_of(*pages, sources, targets), pages->element_size(), nullptr));
}

}  // namespace fastspeech
