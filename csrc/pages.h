// What the CPU and the CUDA side of the page operations have in common: where a token goes, and which dims make a pair.
#pragma once

#include <cstdint>

#include "portable.h"

namespace fastspeech {

// Strides of a tensor of four axes, in elements.
struct Strides {
  int64_t of[4];

  PORTABLE int64_t at(int64_t a, int64_t b, int64_t c) const { return a * of[0] + b * of[1] + c * of[2]; }
};

// New keys or values (rows, tokens, heads, dims) and the pages (pages, heads, slots, dims) they go to.
struct Side {
  const void* tokens;
  void* pages;
  Strides of_tokens, of_pages;
};

// Where the positions of rows lie in pages, and how they turn the heads of their tokens.
struct Places {
  const int32_t* table;      // (rows, columns), or null: row r owns page r
  const int64_t* positions;  // (rows), of the first tokens
  const float* inv_freq;     // (pairs)
  int64_t rows, tokens, heads, dims, pages, page_size, columns, pairs;
  bool interleaved;

  // A page that is not there becomes one that is, lest memory be touched that is none of the cache's.
  PORTABLE int64_t page(int64_t row, int64_t position) const {
    const int64_t page = table == nullptr ? row : table[row * columns + position / page_size % columns];
    return page < 0 ? 0 : page < pages ? page : pages - 1;
  }

  PORTABLE int64_t slot(int64_t position) const { return position % page_size; }

  // A head's dims in units: the pairs, then the dims behind them one by one.
  PORTABLE int64_t units() const { return dims - pairs; }
  PORTABLE int64_t first(int64_t unit) const { return unit >= pairs ? unit + pairs : interleaved ? 2 * unit : unit; }
  PORTABLE int64_t second(int64_t pair) const { return interleaved ? 2 * pair + 1 : pair + pairs; }

  PORTABLE float angle(int64_t position, int64_t pair) const {
    return static_cast<float>(position) * inv_freq[pair];
  }
};

struct Append : Places {
  Side keys, values;
  const int64_t* counts;  // (rows), or null

  PORTABLE bool real(int64_t row, int64_t token) const {
    return positions[row] >= 0 && (counts == nullptr || token < counts[row]);
  }
};

// Write one unit of a head of a token: `from` and `to` are the head's dims, cosine and sine the turn of keys' pairs.
template <class T>
PORTABLE inline void move_unit(const Append& append, int64_t unit, const T* from, int64_t from_dim, T* to,
                               int64_t to_dim, bool turned, float cosine, float sine) {
  const int64_t first = append.first(unit);
  if (unit >= append.pairs) {
    to[first * to_dim] = from[first * from_dim];
    return;
  }
  const int64_t second = append.second(unit);
  const T a = from[first * from_dim], b = from[second * from_dim];
  if (turned) {
    const float x = static_cast<float>(a), y = static_cast<float>(b);
    to[first * to_dim] = static_cast<T>(x * cosine - y * sine);
    to[second * to_dim] = static_cast<T>(y * cosine + x * sine);
  } else {
    to[first * to_dim] = a;
    to[second * to_dim] = b;
  }
}

// Copies of pages (pages, heads, slots, dims).
struct Fork {
  void* pages;
  Strides strides;
  const int64_t *sources, *targets;  // (copies)
  int64_t copies, count, heads, slots, dims;

  // Not to be copied, or not there.
  PORTABLE bool real(int64_t copy) const {
    return sources[copy] >= 0 && sources[copy] < count && targets[copy] >= 0 && targets[copy] < count;
  }
};

}  // namespace fastspeech
