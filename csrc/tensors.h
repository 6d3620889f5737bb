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

// Of tokens (rows, tokens, heads, dims), in pages (pages, key/value heads, page_size, dims).
inline Places places_of(const Tensor& tokens, const Tensor& pages, const std::optional<Tensor>& table,
                        const Tensor& positions, const std::optional<Tensor>& inv_freq, bool interleaved) {
  return {
      data_of<int32_t>(table),
      positions.const_data_ptr<int64_t>(),
      data_of<float>(inv_freq),
      tokens.size(0),
      tokens.size(1),
      pages.size(1),
      pages.size(3),
      pages.size(0),
      pages.size(2),
      table ? table->size(1) : 1,
      inv_freq ? inv_freq->size(0) : 0,
      interleaved,
  };
}

inline Side side_of(const Tensor& tokens, const Tensor& pages, const std::optional<Tensor>& scales) {
  return {tokens.const_data_ptr(), pages.mutable_data_ptr(), strides_of(tokens), strides_of(pages),
          data_of<float>(scales)};
}

inline Append append_of(const Tensor& keys, const Tensor& values, const Tensor& key_pages, const Tensor& value_pages,
                        const std::optional<Tensor>& table, const Tensor& positions,
                        const std::optional<Tensor>& counts, const std::optional<Tensor>& inv_freq, bool interleaved,
                        const std::optional<Tensor>& key_scales, const std::optional<Tensor>& value_scales) {
  return {
      places_of(keys, key_pages, table, positions, inv_freq, interleaved),
      side_of(keys, key_pages, key_scales),
      side_of(values, value_pages, value_scales),
      data_of<int64_t>(counts),
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
