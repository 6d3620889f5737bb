// What the CPU and the CUDA side of the page operations have in common: where a token goes, and which dims make a pair.
#pragma once

#include <cstdint>
#include <cstring>

#include "portable.h"

namespace fastspeech {

// A number as float8_e4m3fn: sign, four bits of exponent of bias 7, three of mantissa (Micikevicius et al. 2022). The
// largest is 448; there is no infinity, and 0x7f is the only NaN beside its negative.
struct E4M3 {
  uint8_t bits;

  // The nearest number, of two equally near the even one; of what is beyond 448, that of 448.
  PORTABLE explicit E4M3(float x) {
    uint32_t whole;
    std::memcpy(&whole, &x, sizeof whole);
    const uint8_t sign = whole >> 24 & 0x80;
    float size = x < 0.0f ? -x : x;
    size = size < 448.0f ? size : 448.0f;
    if (size < 0.015625f) {
      // Below 2^-6 the numbers are 2^-9 apart, as they are from 2^14 on in float: to add that rounds to them.
      size += 16384.0f;
      std::memcpy(&whole, &size, sizeof whole);
      whole -= 0x46800000;
    } else {
      std::memcpy(&whole, &size, sizeof whole);
      whole = ((whole + 0x7ffff + (whole >> 20 & 1)) >> 20) - (120 << 3);
    }
    bits = x == x ? sign | static_cast<uint8_t>(whole) : 0x7f;
  }

  PORTABLE explicit operator float() const {
    // As bits of a float, whose bias is 127. Below 2^-6 a one stands before the mantissa that must go again.
    const uint32_t size = bits & 0x7f;
    const bool small = size < 8;
    const uint32_t whole = size == 0x7f ? 0x7fc00000 : (size << 20) + ((small ? 121u : 120u) << 23);
    float number;
    std::memcpy(&number, &whole, sizeof number);
    number -= small ? 0x1p-6f : 0.0f;
    return bits & 0x80 ? -number : number;
  }
};

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
  const float* scales;  // (heads), which what is stored is divided by; or null
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

template <class P, class T>
struct Store {
  PORTABLE static P of(T value) { return P(static_cast<float>(value)); }
};

// A number that stays what it is must not pass through another type.
template <class T>
struct Store<T, T> {
  PORTABLE static T of(T value) { return value; }
};

// Write one unit of a head of a token: `from` and `to` are the head's dims, `scale` its scale or null, cosine and sine the
// turn of keys' pairs.
template <class T, class P>
PORTABLE inline void move_unit(const Append& append, int64_t unit, const T* from, int64_t from_dim, P* to,
                               int64_t to_dim, const float* scale, bool turned, float cosine, float sine) {
  const auto put = [&](int64_t d, auto value) {
    to[d * to_dim] = scale == nullptr ? Store<P, decltype(value)>::of(value) : P(static_cast<float>(value) / *scale);
  };
  const int64_t first = append.first(unit);
  if (unit >= append.pairs) {
    put(first, from[first * from_dim]);
    return;
  }
  const int64_t second = append.second(unit);
  const T a = from[first * from_dim], b = from[second * from_dim];
  if (turned) {
    const float x = static_cast<float>(a), y = static_cast<float>(b);
    put(first, x * cosine - y * sine);
    put(second, y * cosine + x * sine);
  } else {
    put(first, a);
    put(second, b);
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
