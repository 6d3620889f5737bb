// What the CPU and the CUDA side of residual_vq have in common: where an entry lies, and which of two is nearer.
#pragma once

#include <cstdint>
#include <cstring>

#include "portable.h"

namespace fastspeech {

// Codebooks are (levels, entries, dim), dense.
struct Codebooks {
  const float* values;
  int64_t levels, entries, dim;

  PORTABLE const float* entry(int64_t level, int64_t index) const { return values + (level * entries + index) * dim; }
};

// The squared distance of an entry, without the residual's own square, which is the same for all entries.
PORTABLE inline float distance(float square, float product) { return square - 2.0f * product; }

// A distance and its entry as one number that orders by distance and then by index, so that a minimum over these
// in any order finds the first of the nearest entries. What is not a number is farther than anything.
PORTABLE inline uint64_t choice(float distance, uint32_t entry) {
  uint32_t bits = UINT32_MAX;
  if (distance == distance) {
    std::memcpy(&bits, &distance, sizeof bits);
    bits = bits >> 31 ? ~bits : bits | 0x80000000u;
  }
  return static_cast<uint64_t>(bits) << 32 | entry;
}

PORTABLE inline int64_t chosen(uint64_t choice) { return static_cast<int64_t>(choice & UINT32_MAX); }

}  // namespace fastspeech
