// rope_attention on the CPU: keys are turned and laid out head by head, then blocks of queries pass them, a run of keys
// after the other, with a running softmax (Milakov and Gimelshein 2018). All in float32.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "cpu.h"
#include "ops.h"
#include "tensors.h"

namespace fastspeech {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;

constexpr int64_t RUN = 64;         // keys that are seen together
constexpr int64_t GRAIN = 1 << 15;  // products that one thread has sooner than others are woken
constexpr float NEVER = -std::numeric_limits<float>::infinity();

#define EACH_SIMD "rope_attention_block.h"
#include "each_simd.h"

// Cosines and sines (rows, tokens, pairs), one row for all or one for each; null where nothing is turned.
struct Turns {
  const float *cosines, *sines;
  int64_t rows, tokens, pairs;
  bool interleaved;

  int64_t at(int64_t row, int64_t token) const { return ((rows == 1 ? 0 : row) * tokens + token) * pairs; }
};

struct Attention {
  const void *queries, *keys, *values;
  Strides of_queries, of_keys, of_values;
  Turns query_turns, key_turns;
  const int64_t* lengths;  // (batch), or null
  int64_t batch, tokens, frames, heads, kv_heads, dims, sight;
  float scale;
  void* out;  // (batch, tokens, heads, dims), dense

  // Valid keys of a row.
  int64_t valid(int64_t row) const { return lengths ? std::clamp<int64_t>(lengths[row], 0, frames) : frames; }
};

// A head of a token, turned, times `scale`; its dims `step` apart in `to`.
template <bool INTERLEAVED, class T>
void turn(const T* from, int64_t from_step, const Turns& turns, int64_t at, int64_t dims, float scale, float* to,
          int64_t step) {
  const float *cosines = turns.cosines + at, *sines = turns.sines + at;
  const int64_t pairs = turns.pairs;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const int64_t first = INTERLEAVED ? 2 * pair : pair, second = INTERLEAVED ? first + 1 : pair + pairs;
    const float x = static_cast<float>(from[first * from_step]), y = static_cast<float>(from[second * from_step]);
    to[first * step] = (x * cosines[pair] - y * sines[pair]) * scale;
    to[second * step] = (y * cosines[pair] + x * sines[pair]) * scale;
  }
  for (int64_t d = 2 * pairs; d < dims; ++d) to[d * step] = static_cast<float>(from[d * from_step]) * scale;
}

template <class T>
void take(const T* from, int64_t from_step, const Turns& turns, int64_t at, int64_t dims, float scale, float* to,
          int64_t step) {
  // For a constant there are better loops.
  if (turns.interleaved && from_step == 1) return turn<true>(from, 1, turns, at, dims, scale, to, step);
  if (turns.interleaved) return turn<true>(from, from_step, turns, at, dims, scale, to, step);
  turn<false>(from, from_step, turns, at, dims, scale, to, step);
}

// Keys, turned, and values (batch, key/value heads, frames, dims), dense.
template <class T>
void lay_out(const Attention& a, float* keys, float* values) {
  const int64_t grain = std::max<int64_t>(1, GRAIN / (a.kv_heads * a.dims));
  torch::stable::parallel_for(0, a.batch * a.frames, grain, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t row = item / a.frames, frame = item % a.frames;
      if (frame >= a.valid(row)) continue;
      for (int64_t head = 0; head < a.kv_heads; ++head) {
        const T* key = static_cast<const T*>(a.keys) + a.of_keys.at(row, frame, head);
        const T* value = static_cast<const T*>(a.values) + a.of_values.at(row, frame, head);
        const int64_t to = ((row * a.kv_heads + head) * a.frames + frame) * a.dims;
        take(key, a.of_keys.of[3], a.key_turns, a.key_turns.at(row, frame), a.dims, 1.0f, keys + to, 1);
        for (int64_t d = 0; d < a.dims; ++d) values[to + d] = static_cast<float>(value[d * a.of_values.of[3]]);
      }
    }
  });
}

// Queries from `first` on, `count` of them, of a head of a row.
template <class T>
void attend_some(const Attention& a, const float* keys, const float* values, int64_t row, int64_t head, int64_t first,
                 int64_t count, float* block, float* room) {
  static const auto attend = BEST_SIMD(attend);
  static const int64_t lanes = BEST_SIMD(lanes)();
  const int64_t width = count > lanes ? 2 * lanes : lanes, place = a.frames - a.tokens + first;
  std::fill_n(block, a.dims * width, 0.0f);
  for (int64_t q = 0; q < count; ++q) {
    const T* query = static_cast<const T*>(a.queries) + a.of_queries.at(row, first + q, head);
    const int64_t at = a.query_turns.at(row, first + q);
    take(query, a.of_queries.of[3], a.query_turns, at, a.dims, a.scale, block + q, width);
  }
  const int64_t its = (row * a.kv_heads + head / (a.heads / a.kv_heads)) * a.frames * a.dims;
  const int64_t begin = a.sight ? std::max<int64_t>(0, place - a.sight + 1) : 0;
  const int64_t end = a.sight ? std::min(a.valid(row), place + count) : a.valid(row);
  attend(block, count, keys + its, values + its, a.dims, begin, end, place, a.sight, room);
  for (int64_t q = 0; q < count; ++q) {
    T* out = static_cast<T*>(a.out) + ((row * a.tokens + first + q) * a.heads + head) * a.dims;
    for (int64_t d = 0; d < a.dims; ++d) out[d] = static_cast<T>(block[d * width + q]);
  }
}

template <class T>
void attend_all(const Attention& a) {
  static const int64_t lanes = BEST_SIMD(lanes)();
  const int64_t many = 2 * lanes, blocks = (a.tokens + many - 1) / many;
  const int64_t held = a.batch * a.kv_heads * a.frames * a.dims;
  const std::unique_ptr<float[]> keys(new float[held]), values(new float[held]);
  lay_out<T>(a, keys.get(), values.get());
  const int64_t products = std::max<int64_t>(1, many * a.frames * a.dims);
  const int64_t grain = std::max<int64_t>(1, GRAIN / products);
  torch::stable::parallel_for(0, a.batch * a.heads * blocks, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> room((2 * a.dims + RUN) * many + lanes);
    const auto address = reinterpret_cast<uintptr_t>(room.data()), whole = sizeof(float) * lanes;
    float* block = reinterpret_cast<float*>((address + whole - 1) / whole * whole);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t row = item / blocks / a.heads, head = item / blocks % a.heads, first = item % blocks * many;
      const int64_t count = std::min(many, a.tokens - first);
      attend_some<T>(a, keys.get(), values.get(), row, head, first, count, block, block + a.dims * many);
    }
  });
}

Turns turns_of(const std::optional<Tensor>& cosines, const std::optional<Tensor>& sines, bool interleaved) {
  if (!cosines) return {nullptr, nullptr, 1, 0, 0, interleaved};
  return {data_of<float>(cosines), data_of<float>(sines), cosines->size(0), cosines->size(1), cosines->size(2),
          interleaved};
}

}  // namespace

void rope_attention_cpu(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& q_cosines,
                        const std::optional<Tensor>& q_sines, const std::optional<Tensor>& k_cosines,
                        const std::optional<Tensor>& k_sines, const std::optional<Tensor>& lengths, bool causal,
                        int64_t window, bool interleaved, double scale, const Tensor& out) {
  const Attention attention{
      q.const_data_ptr(),
      k.const_data_ptr(),
      v.const_data_ptr(),
      strides_of(q),
      strides_of(k),
      strides_of(v),
      turns_of(q_cosines, q_sines, interleaved),
      turns_of(k_cosines, k_sines, interleaved),
      data_of<int64_t>(lengths),
      q.size(0),
      q.size(1),
      k.size(1),
      q.size(2),
      k.size(2),
      q.size(3),
      causal ? window ? window : k.size(1) : 0,
      static_cast<float>(scale),
      out.mutable_data_ptr(),
  };
  switch (q.scalar_type()) {
    case ScalarType::Float:
      return attend_all<float>(attention);
    case ScalarType::BFloat16:
      return attend_all<BFloat16>(attention);
    case ScalarType::Half:
      return attend_all<Half>(attention);
    default:
      STD_TORCH_CHECK(false, "rope_attention takes float32, bfloat16 and float16");
  }
}

}  // namespace fastspeech
