// paged_attention on the CPU: the queries of a row pass the keys and values that it sees once, a run of them after the
// other, with a running softmax (Milakov and Gimelshein 2018). Nothing of a page is copied but what registers cannot be
// loaded with as it lies.
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

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;

constexpr int64_t RUN = 64;          // keys that are seen together
constexpr int64_t SPACE = RUN + 16;  // from one query's scores to the next one's
constexpr int64_t MOST_LANES = 16;   // of each_simd.h
constexpr int64_t GRAIN = 1 << 15;   // products that one thread has sooner than others are woken
constexpr float NEVER = -std::numeric_limits<float>::infinity();

// Positions that a query sees: first .. last.
struct Range {
  int64_t first, last;
};

// Keys or values of consecutive slots of a page, one head's.
template <class P>
struct Slots {
  const P* first;
  int64_t step, count;

  const P* of(int64_t slot) const { return first + slot * step; }
};

struct Softmax {
  float largest = NEVER, sum = 0.0f;
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
  void* out;                               // (rows, tokens, heads, dims), dense
  std::vector<float> cosines, sines;       // (rows, tokens, pairs), which all heads share
};

// What a thread works in.
struct Room {
  std::vector<float> queries, results, slots;  // `width` apart
  std::vector<float> scores;                   // SPACE apart
  std::vector<Range> ranges;
  std::vector<Softmax> softmax;
};

// What is read into registers without help.
template <class P>
constexpr bool READABLE = std::is_same_v<P, float> || std::is_same_v<P, BFloat16>;

// Whether a head's values can be read where they lie: they are dense, and a register of any processor is not too wide.
template <class P>
bool in_place(const Attention& a) {
  return READABLE<P> && a.of_keys.of[3] == 1 && a.of_values.of[3] == 1 && a.places.dims >= MOST_LANES;
}

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

// Positions that any query of a row sees; none where last < first.
Range seen_by(const Attention& a, int64_t row) {
  const Places& at = a.places;
  const int64_t position = at.positions[row], last = position + at.tokens - 1;
  if (last < 0 || (a.causal && position < 0)) return {0, -1};
  const int64_t held = std::max<int64_t>(0, last - at.page_size * at.columns + 1);
  return {a.window ? std::max(held, position - a.window + 1) : held, last};
}

// Slots of keys or values, in what `room` has where they cannot be read where they lie.
template <class P, class Do>
void with_slots(const Attention& a, const P* from, const Strides& strides, int64_t count, int64_t width, float* room,
                const Do& run) {
  if constexpr (READABLE<P>)
    if (in_place<P>(a)) return run(Slots<P>{from, strides.of[2], count}, a.places.dims);
  for (int64_t slot = 0; slot < count; ++slot)
    for (int64_t d = 0; d < a.places.dims; ++d)
      room[slot * width + d] = static_cast<float>(from[slot * strides.of[2] + d * strides.of[3]]);
  run(Slots<float>{room, width, count}, width);
}

// The key/value heads from `first` up to `end` of a row, run by run: of a page, all heads lie side by side.
template <class T, class P>
void attend_row(const Attention& a, int64_t row, int64_t first, int64_t end, int64_t width, Room& room) {
  const Places& at = a.places;
  static const auto take = BEST_SIMD(take);
  const int64_t group = a.heads / at.heads, count = at.tokens * group, dims = at.dims, heads = end - first;
  const Range seen = seen_by(a, row);
  room.queries.assign(heads * count * width, 0.0f);
  room.results.assign(heads * count * width, 0.0f);
  room.scores.resize(heads * count * SPACE);
  room.slots.assign(RUN * width, 0.0f);
  room.softmax.assign(heads * count, Softmax());
  room.ranges.resize(count);
  for (int64_t q = 0; q < count; ++q) {
    const int64_t own = at.positions[row] + q / group;
    const int64_t held = seen.last - at.page_size * at.columns + 1;
    room.ranges[q] = {std::max({int64_t(0), held, a.window ? own - a.window + 1 : 0}), a.causal ? own : seen.last};
  }
  for (int64_t item = 0; item < heads * count; ++item) {
    const int64_t q = item % count, kv_head = first + item / count, head = kv_head * group + q % group;
    const float scale = a.scale * (a.key_scales == nullptr ? 1.0f : a.key_scales[kv_head]);
    take_query<T>(a, row, q / group, head, scale, room.queries.data() + item * width);
  }
  // Of a page, what the heads have lies side by side: one after the other they make streams that memory is fast at.
  for (int64_t begin = seen.first; begin <= seen.last; begin += RUN) {
    const int64_t many = std::min(RUN, seen.last - begin + 1);
    const auto each_slots = [&](const void* pages, const Strides& strides, const auto& run) {
      for (int64_t next = 0, more; next < many; next += more) {
        const int64_t page = at.page(row, begin + next), slot = at.slot(begin + next);
        more = std::min(at.page_size - slot, many - next);
        const int64_t after = std::min(begin + next + more, seen.last);
        const P* soon = static_cast<const P*>(pages) + strides.at(at.page(row, after), first, at.slot(after));
        for (int64_t head = 0; head < heads; ++head) {
          // The beginning of a stream is what the processor cannot foresee.
          __builtin_prefetch(soon + head * strides.of[1]);
          __builtin_prefetch(soon + head * strides.of[1] + 64 / sizeof(P));
          const P* from = static_cast<const P*>(pages) + strides.at(page, first + head, slot);
          with_slots(a, from, strides, more, width, room.slots.data(),
                     [&](const auto& slots, int64_t dims) { run(slots, dims, head * count, next); });
        }
      }
    };
    each_slots(a.keys, a.of_keys, [&](const auto& slots, int64_t dims, int64_t item, int64_t next) {
      static const auto score = BEST_SIMD(score<std::decay_t<decltype(*slots.first)>>);
      score(slots, room.queries.data() + item * width, count, dims, width, room.scores.data() + item * SPACE + next);
    });
    for (int64_t item = 0; item < heads * count; ++item) {
      const Range& range = room.ranges[item % count];
      const float factor = take(room.softmax[item], room.scores.data() + item * SPACE, begin, many, range);
      if (factor != 1.0f)
        for (int64_t d = 0; d < width; ++d) room.results[item * width + d] *= factor;
    }
    each_slots(a.values, a.of_values, [&](const auto& slots, int64_t dims, int64_t item, int64_t next) {
      static const auto add = BEST_SIMD(add<std::decay_t<decltype(*slots.first)>>);
      add(slots, room.scores.data() + item * SPACE + next, count, dims, width, room.results.data() + item * width);
    });
  }
  for (int64_t item = 0; item < heads * count; ++item) {
    const int64_t q = item % count, kv_head = first + item / count, head = kv_head * group + q % group;
    T* out = static_cast<T*>(a.out) + ((row * at.tokens + q / group) * a.heads + head) * dims;
    const float scale = a.value_scales == nullptr ? 1.0f : a.value_scales[kv_head];
    const float sum = room.softmax[item].sum, share = sum == 0.0f ? 0.0f : scale / sum;
    for (int64_t d = 0; d < dims; ++d) out[d] = static_cast<T>(room.results[item * width + d] * share);
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

// The threads share what is seen of all rows, in pieces of a head of a row.
template <class T, class P>
void attend_all(const Attention& a) {
  const Places& at = a.places;
  const int64_t width = (at.dims + MOST_LANES - 1) / MOST_LANES * MOST_LANES;
  std::vector<int64_t> pieces(at.rows), starts(at.rows + 1);
  for (int64_t row = 0; row < at.rows; ++row) {
    const Range seen = seen_by(a, row);
    pieces[row] = std::max<int64_t>(1, seen.last - seen.first + 1);
    starts[row + 1] = starts[row] + pieces[row] * at.heads;
  }
  const int64_t products = std::max<int64_t>(1, at.dims * at.tokens * (a.heads / at.heads));
  const int64_t grain = std::max<int64_t>(1, GRAIN / products);
  torch::stable::parallel_for(0, starts.back(), grain, [&](int64_t begin, int64_t end) {
    Room room;
    for (int64_t row = 0; row < at.rows; ++row) {
      const auto heads_before = [&](int64_t where) {
        return std::clamp<int64_t>((where - starts[row] + pieces[row] - 1) / pieces[row], 0, at.heads);
      };
      const int64_t first = heads_before(begin), last = heads_before(end);
      if (first < last) attend_row<T, P>(a, row, first, last, width, room);
    }
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
      return attend_by<BFloat16>(attention, eight_bits);
    case ScalarType::Half:
      return attend_by<Half>(attention, eight_bits);
    default:
      STD_TORCH_CHECK(false, "paged_attention takes float32, bfloat16 and float16");
  }
}

}  // namespace fastspeech
