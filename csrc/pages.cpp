// page_append and page_fork on the CPU.
#include "pages.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cpu.h"
#include "ops.h"
#include "tensors.h"

namespace fastspeech {
namespace {

using torch::headeronly::ScalarType;

// Less than this many values are moved sooner by one thread than others are woken.
constexpr int64_t GRAIN = 1 << 15;

template <class T, class P>
void append_token(const Append& append, int64_t row, int64_t token, float* cosines, float* sines) {
  if (!append.real(row, token)) return;
  const int64_t position = append.positions[row] + token;
  const int64_t page = append.page(row, position), slot = append.slot(position);
  for (int64_t pair = 0; pair < append.pairs; ++pair) {
    cosines[pair] = std::cos(append.angle(position, pair));
    sines[pair] = std::sin(append.angle(position, pair));
  }
  for (const Side* side : {&append.keys, &append.values}) {
    const int64_t from_dim = side->of_tokens.of[3], to_dim = side->of_pages.of[3];
    for (int64_t head = 0; head < append.heads; ++head) {
      const T* from = static_cast<const T*>(side->tokens) + side->of_tokens.at(row, token, head);
      P* to = static_cast<P*>(side->pages) + side->of_pages.at(page, head, slot);
      const float* scale = side->scales == nullptr ? nullptr : side->scales + head;
      if constexpr (std::is_same_v<T, P>)
        if (append.pairs == 0 && scale == nullptr && from_dim == 1 && to_dim == 1) {
          std::memcpy(to, from, append.dims * sizeof(T));
          continue;
        }
      const bool turned = side == &append.keys;
      for (int64_t unit = 0; unit < append.pairs; ++unit)
        move_unit(append, unit, from, from_dim, to, to_dim, scale, turned, cosines[unit], sines[unit]);
      for (int64_t unit = append.pairs; unit < append.units(); ++unit)
        move_unit(append, unit, from, from_dim, to, to_dim, scale, false, 0.f, 0.f);
    }
  }
}

template <class T, class P>
void append_all(const Append& append) {
  const int64_t values = append.heads * append.dims;
  torch::stable::parallel_for(0, append.rows * append.tokens, std::max<int64_t>(GRAIN / std::max<int64_t>(values, 1), 1),
                              [&](int64_t begin, int64_t end) {
                                std::vector<float> turns(2 * append.pairs);
                                for (int64_t at = begin; at < end; ++at)
                                  append_token<T, P>(append, at / append.tokens, at % append.tokens, turns.data(),
                                                  turns.data() + append.pairs);
                              });
}

template <class T>
void append_by(const Append& append, bool eight_bits) {
  eight_bits ? append_all<T, E4M3>(append) : append_all<T, T>(append);
}

template <class T>
void fork_all(const Fork& fork) {
  T* pages = static_cast<T*>(fork.pages);
  const int64_t values = fork.slots * fork.dims;
  torch::stable::parallel_for(
      0, fork.copies * fork.heads, std::max<int64_t>(GRAIN / std::max<int64_t>(values, 1), 1),
      [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at) {
          const int64_t copy = at / fork.heads, head = at % fork.heads;
          if (!fork.real(copy)) continue;
          for (int64_t slot = 0; slot < fork.slots; ++slot) {
            const T* from = pages + fork.strides.at(fork.sources[copy], head, slot);
            T* to = pages + fork.strides.at(fork.targets[copy], head, slot);
            const int64_t dim = fork.strides.of[3];
            if (dim == 1)
              std::memcpy(to, from, fork.dims * sizeof(T));
            else
              for (int64_t d = 0; d < fork.dims; ++d) to[d * dim] = from[d * dim];
          }
        }
      });
}

}  // namespace

void page_append_cpu(const Tensor& keys, const Tensor& values, const Tensor& key_pages, const Tensor& value_pages,
                     const std::optional<Tensor>& table, const Tensor& positions, const std::optional<Tensor>& counts,
                     const std::optional<Tensor>& inv_freq, bool interleaved, const std::optional<Tensor>& key_scales,
                     const std::optional<Tensor>& value_scales) {
  const Append append = append_of(keys, values, key_pages, value_pages, table, positions, counts, inv_freq, interleaved,
                                  key_scales, value_scales);
  const bool eight_bits = key_pages.element_size() == 1;
  switch (keys.scalar_type()) {
    case ScalarType::Float:
      return append_by<float>(append, eight_bits);
    case ScalarType::BFloat16:
      return append_by<torch::headeronly::BFloat16>(append, eight_bits);
    case ScalarType::Half:
      return append_by<torch::headeronly::Half>(append, eight_bits);
    default:
      STD_TORCH_CHECK(false, "page_append takes float32, bfloat16 and float16");
  }
}

void page_fork_cpu(const Tensor& key_pages, const Tensor& value_pages, const Tensor& sources, const Tensor& targets) {
  for (const Tensor* pages : {&key_pages, &value_pages}) {
    const Fork fork = fork_of(*pages, sources, targets);
    switch (pages->element_size()) {
      case 1:
        fork_all<uint8_t>(fork);
        break;
      case 2:
        fork_all<uint16_t>(fork);
        break;
      default:
        fork_all<uint32_t>(fork);
    }
  }
}

}  // namespace fastspeech
