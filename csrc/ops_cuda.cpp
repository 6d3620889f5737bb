// The CUDA side of the ops as PyTorch calls it.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "cuda.h"
#include "tensors.h"

// Of a torch without CUDA this symbol is missing, and the library loads all the same.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace fastspeech {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::accelerator::DeviceGuard;

void* stream_of(const Tensor& tensor) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this torch has no CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return stream;
}

void check(int error) { STD_TORCH_CHECK(error == 0, "CUDA: ", cuda_message(error)); }

Element element_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Element::float32;
    case ScalarType::BFloat16:
      return Element::bfloat16;
    case ScalarType::Half:
      return Element::float16;
    default:
      STD_TORCH_CHECK(false, "page_append takes float32, bfloat16 and float16");
  }
}

void residual_vq(const Tensor& latents, const Tensor& codebooks, const std::vector<int64_t>& splits,
                 const Tensor& codes, const std::optional<Tensor>& choices) {
  const DeviceGuard guard(latents.get_device_index());
  check(residual_vq_launch(latents.const_data_ptr<float>(), codebooks_of(codebooks), splits.data(),
                           static_cast<int>(splits.size()), latents.size(1), choices->mutable_data_ptr<int64_t>(),
                           codes.mutable_data_ptr<int64_t>(), stream_of(latents)));
}

void page_append(const Tensor& keys, const Tensor& values, const Tensor& key_pages, const Tensor& value_pages,
                 const std::optional<Tensor>& table, const Tensor& positions, const std::optional<Tensor>& counts,
                 const std::optional<Tensor>& inv_freq, bool interleaved, const std::optional<Tensor>& key_scales,
                 const std::optional<Tensor>& value_scales) {
  const DeviceGuard guard(keys.get_device_index());
  check(page_append_launch(append_of(keys, values, key_pages, value_pages, table, positions, counts, inv_freq,
                                     interleaved, key_scales, value_scales),
                           element_of(keys), key_pages.element_size() == 1, stream_of(keys)));
}

void page_fork(const Tensor& key_pages, const Tensor& value_pages, const Tensor& sources, const Tensor& targets) {
  const DeviceGuard guard(key_pages.get_device_index());
  for (const Tensor* pages : {&key_pages, &value_pages})
    check(page_fork_launch(fork_of(*pages, sources, targets), pages->element_size(), stream_of(*pages)));
}

}  // namespace
}  // namespace fastspeech

STABLE_TORCH_LIBRARY_IMPL(fastspeech_csrc, CUDA, library) {
  library.impl("residual_vq", TORCH_BOX(&fastspeech::residual_vq));
  library.impl("page_append", TORCH_BOX(&fastspeech::page_append));
  library.impl("page_fork", TORCH_BOX(&fastspeech::page_fork));
}
