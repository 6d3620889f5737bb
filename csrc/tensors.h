// From tensors, whose shapes the ops' rooms have checked, to what the loops work on.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "pages.h"
#include "residual_vq.h"

namespace fastspeech {

using torch::stable::Tensor;

inline Strides strides_of(const Tensor& tensor) {
  const auto strides = tensor.strides();
  return {{strides[0], strides[1], strides[2], strides[3]}};
}

template <class T>
const T* data_of(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<T>() : nullptr;
}

inline Codebooks codebooks_of(const Tensor& codebooks) {
  return {codebooks.const_data_ptr<float>(), codebooks.size(0), codebooks.size(1), codebooks.size(2)};
}

inline Append append_of(const Tensor& keys, const Tensor& values, const Tensor& key_pages, const Tensor& value_pages,
                        const std::optional<Tensor>& table, const Tensor& positions,
                        const std::optional<Tensor>& counts, const std::optional<Tensor>& inv_freq, bool interleaved) {
  return {
      {keys.const_data_ptr(), key_pages.mutable_data_ptr(), strides_of(keys), strides_of(key_pages)},
      {values.const_data_ptr(), value_pages.mutable_data_ptr(), strides_of(values), strides_of(value_pages)},
      data_of<int32_t>(table),
      positions.const_data_ptr<int64_t>(),
      data_of<int64_t>(counts),
      data_of<float>(inv_freq),
      keys.size(0),
      keys.size(1),
      keys.size(2),
      keys.size(3),
      key_pages.size(0),
      key_pages.size(2),
      table ? table->size(1) : 1,
      inv_freq ? inv_freq->size(0) : 0,
      interleaved,
  };
}

inline Fork fork_of(const Tensor& pages, const Tensor& sources, const Tensor& targets) {
  return {
      pages.mutable_data_ptr(),
      strides_of(pages),
      sources.const_data_ptr<int64_t>(),
      targets.const_data_ptr<int64_t>(),
      sources.size(0),
      pages.size(0),
      pages.size(1),
      pages.size(2),
      pages.size(3),
  };
}

}  // namespace fastspeech
