// paged_attention on the CPU: a key/value head of a row at a time, whose queries pass its pages once, a run of keys after
// the other, with a running softmax (Milakov and Gimelshein 2018). Nothing of a page is copied but what has to become
// float32.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu.h"
#include "ops.h"
#include "tensors.h"

namespace fastspeech {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t RUN = 64;          // keys that are seen together
constexpr int64_t GRAIN = 1 << 15;   // products that one thread has sooner than others are woken
constexpr float NEVER = -std::numeric_limits<float>::infinity();

// Positions that a query sees: first .. last.
struct Range {
  int64_t first, last;
};

// Keys and values of consecutive positions, as float32.
struct Run {
  const float* keys[RUN];
  const float* values[RUN];
  int64_t position, count;
};

struct Softmax {
  float largest = NEVER, sum = 0.0f;

  // Turn the scores of a run into weights, 0 for what is out of range. Returns the factor of all weights before.
  float take(float* scores, const Run& run, const Range& range) {
    const int64_t begin = std::clamp<int64_t>(range.first - run.position, 0, run.count);
    const int64_t end = std::clamp<int64_t>(range.last + 1 - run.position, begin, run.count);
    std::fill(scores, scores + begin, 0.0f);
    std::fill(scores + end, scores + run.count, 0.0f);
    if (begin == end) return 1.0f;
    const float before = largest;
    for (int64_t k = begin; k < end; ++k) largest = std::max(largest, scores[k]);
    const float factor = before == NEVER ? 0.0f : std::exp(before - largest);
    sum *= factor;
    for (int64_t k = begin; k < end; ++k) {
      scores[k] = std::exp(scores[k] - largest);
      sum += scores[k];
    }
    return factor;
  }
};

#define EACH_SIMD "paged_attention_row.h"
#include "each_simd.h"

struct Attention {
  const void *queries, *keys, *values;
  Strides of_queries, of_keys, of_values;
  Places places;
  int64_t heads;
  bool causal;
  int64_t window;
  float scale;
  const float *key_scales, *value_scales;  // (key/value heads), or null
  void* out;                          // (rows, tokens, heads, dims), dense
  std::vector<float> cosines, sines;  // (rows, tokens, pairs), which all heads share
};

// A head's values where they are, if these are float32, dense and whole registers, and else in `room`.
template <class P>
const float* as_floats(const P* from, int64_t step, int64_t dims, int64_t width, float* room) {
  if constexpr (std::is_same_v<P, float>)
    if (step == 1 && dims == width) return from;
  for (int64_t d = 0; d < dims; ++d) room[d] = static_cast<float>(from[d * step]);
  return room;
}

// What a thread works in.
struct Room {
  std::vector<float> queries, results, keys, values;
  std::vector<Range> ranges;
  std::vector<Softmax> softmax;

  Room(int64_t count, int64_t width)
      : queries(count * width), results(count * width), keys(RUN * width), values(RUN * width), ranges(count) {}
};

template <class T>
void take_query(const Attention& a, int64_t row, int64_t token, int64_t head, float scale, float* query) {
  const Places& at = a.places;
  const T* from = static_cast<const T*>(a.queries) + a.of_queries.at(row, token, head);
  const int64_t step = a.of_queries.of[3], turn = (row * at.tokens + token) * at.pairs;
  for (int64_t unit = 0; unit < at.units(); ++unit) {
    const int64_t first = at.first(unit);
    const float x = static_cast<float>(from[first * step]);
    if (unit < at.pairs) {
      const int64_t second = at.second(unit);
      const float y = static_cast<float>(from[second * step]);
      const float cosine = a.cosines[turn + unit], sine = a.sines[turn + unit];
      query[first] = (x * cosine - y * sine) * scale;
      query[second] = (y * cosine + x * sine) * scale;
    } else {
      query[first] = x * scale;
    }
  }
}

template <class T, class P>
void attend_head(const Attention& a, int64_t row, int64_t kv_head, int64_t width, Room& room) {
  static const auto attend = BEST_SIMD(attend);
  const Places& at = a.places;
  const int64_t group = a.heads / at.heads, count = at.tokens * group, dims = at.dims;
  const int64_t position = at.positions[row], last = position + at.tokens - 1;
  const int64_t held = std::max<int64_t>(0, last - at.page_size * at.columns + 1);
  const float scale = a.scale * (a.key_scales == nullptr ? 1.0f : a.key_scales[kv_head]);
  const float value_scale = a.value_scales == nullptr ? 1.0f : a.value_scales[kv_head];
  const bool idle = last < 0 || (a.causal && position < 0);
  room.softmax.assign(count, Softmax());
  std::fill(room.results.begin(), room.results.end(), 0.0f);
  if (!idle) {
    for (int64_t q = 0; q < count; ++q) {
      const int64_t token = q / group, own = position + token;
      take_query<T>(a, row, token, kv_head * group + q % group, scale, room.queries.data() + q * width);
      room.ranges[q] = {a.window ? std::max(held, own - a.window + 1) : held, a.causal ? own : last};
    }
    for (int64_t next = room.ranges[0].first; next <= last;) {
      const int64_t page = at.page(row, next), slot = at.slot(next);
      Run run;
      run.position = next;
      run.count = std::min({RUN, at.page_size - slot, last - next + 1});
      const P* key = static_cast<const P*>(a.keys) + a.of_keys.at(page, kv_head, slot);
      const P* value = static_cast<const P*>(a.values) + a.of_values.at(page, kv_head, slot);
      for (int64_t k = 0; k < run.count; ++k) {
        const P *its_key = key + k * a.of_keys.of[2], *its_value = value + k * a.of_values.of[2];
        run.keys[k] = as_floats(its_key, a.of_keys.of[3], dims, width, room.keys.data() + k * width);
        run.values[k] = as_floats(its_value, a.of_values.of[3], dims, width, room.values.data() + k * width);
      }
      attend(run, room.queries.data(), count, width, room.ranges.data(), room.softmax.data(), room.results.data());
      next += run.count;
    }
  }
  for (int64_t q = 0; q < count; ++q) {
    const int64_t token = q / group, head = kv_head * group + q % group;
    T* out = static_cast<T*>(a.out) + ((row * at.tokens + token) * a.heads + head) * dims;
    const float share = room.softmax[q].sum == 0.0f ? 0.0f : value_scale / room.softmax[q].sum;
    for (int64_t d = 0; d < dims; ++d) out[d] = static_cast<T>(room.results[q * width + d] * share);
  }
}

void turn_all(Attention& a) {
  const Places& at = a.places;
  a.cosines.resize(at.rows * at.tokens * at.pairs);
  a.sines.resize(a.cosines.size());
  torch::stable::parallel_for(0, a.cosines.size(), GRAIN / 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t token = i / at.pairs;
      const float angle = at.angle(at.positions[token / at.tokens] + token % at.tokens, i % at.pairs);
      a.cosines[i] = std::cos(angle);
      a.sines[i] = std::sin(angle);
    }
  });
}

template <class T, class P>
void attend_all(const Attention& a) {
  const Places& at = a.places;
  const int64_t count = at.tokens * (a.heads / at.heads);
  const int64_t width = (at.dims + 15) / 16 * 16;  // whole registers, also of the widest
  const int64_t work = std::max<int64_t>(1, at.page_size * at.columns * at.dims * count);
  const int64_t grain = std::max<int64_t>(1, GRAIN / work);
  torch::stable::parallel_for(0, at.rows * at.heads, grain, [&](int64_t begin, int64_t end) {
    Room room(count, width);
    for (int64_t item = begin; item < end; ++item) attend_head<T, P>(a, item / at.heads, item % at.heads, width, room);
  });
}

template <class T>
void attend_by(const Attention& a, bool eight_bits) {
  eight_bits ? attend_all<T, E4M3>(a) : attend_all<T, T>(a);
}

}  // namespace

void paged_attention_cpu(const Tensor& q, const Tensor& key_pages, const Tensor& value_pages,
                         const std::optional<Tensor>& table, const Tensor& positions,
                         const std::optional<Tensor>& inv_freq, bool interleaved, bool causal, int64_t window,
                         double scale, const std::optional<Tensor>& key_scales,
                         const std::optional<Tensor>& value_scales, const Tensor& out) {
  Attention attention{
      q.const_data_ptr(),
      key_pages.const_data_ptr(),
      value_pages.const_data_ptr(),
      strides_of(q),
      strides_of(key_pages),
      strides_of(value_pages),
      places_of(q, key_pages, table, positions, inv_freq, interleaved),
      q.size(2),
      causal,
      window,
      static_cast<float>(scale),
      data_of<float>(key_scales),
      data_of<float>(value_scales),
      out.mutable_data_ptr(),
      {},
      {},
  };
  turn_all(attention);
  const bool eight_bits = key_pages.element_size() == 1;
  switch (q.scalar_type()) {
    case ScalarType::Float:
      return attend_by<float>(attention, eight_bits);
    case ScalarType::BFloat16:
      return attend_by<torch::headeronly::BFloat16>(attention, eight_bits);
    case ScalarType::Half:
      return attend_by<torch::headeronly::Half>(attention, eight_bits);
    default:
      STD_TORCH_CHECK(false, "paged_attention takes float32, bfloat16 and float16");
  }
}

}  // namespace fastspeech
