// A linear map of rows by weights in tiles, and what one tile is a part of.
#pragma once

#include <cstdint>

namespace fastspeech {

constexpr int64_t TILE = 32;  // outputs

// Row r of the input begins at x + r / group * jump + r % group * step: rows may overlap, as a convolution's windows do.
struct Linear {
  const float* x;         // rows of `in`
  const float* tiles;     // (tiles, in, TILE)
  const float* bias;      // (outputs) or null
  const float* residual;  // (rows, outputs), added at the end, or null
  float* out;             // (rows, outputs)
  int64_t rows, in, outputs, group, step, jump;
};

// On all threads.
void multiply(const Linear& linear);

}  // namespace fastspeech
