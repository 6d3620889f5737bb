// Rows times a tile, for one set of vector registers (each_simd.h).

constexpr int64_t PAIR = 2 * LANES;                // outputs whose sums a block of rows holds
constexpr int BLOCK = LANES == 16 ? 8 : 4;         // rows; there are 32 registers of AVX-512, and 16 otherwise
constexpr int64_t PART = 128;                      // products that are summed before the sum of all grows by them

template <int COUNT>
TARGET __attribute__((noinline)) void multiply_block(const Linear& linear, int64_t row, int64_t tile, int64_t first) {
  const int64_t in = linear.in, output = tile * TILE + first, left = linear.outputs - output;
  const float* x[COUNT];
  for (int64_t r = 0, group = row / linear.group, at = row % linear.group; r < COUNT; ++r) {
    x[r] = linear.x + group * linear.jump + at * linear.step;
    if (++at == linear.group) at = 0, ++group;
  }
  const float* weights = linear.tiles + tile * in * TILE + first;
  const int64_t low_count = std::min<int64_t>(left, LANES), high_count = std::clamp<int64_t>(left - LANES, 0, LANES);
  Lanes bias[2] = {}, totals[COUNT][2];
  if (linear.bias) {
    bias[0] = load(linear.bias + output, low_count);
    if (high_count) bias[1] = load(linear.bias + output + LANES, high_count);
  }
  for (int r = 0; r < COUNT; ++r)
    for (int half = 0; half < 2; ++half) totals[r][half] = bias[half];
  // A sum of thousands of products would lose digits that sums of parts keep.
  for (int64_t i = 0; i < in;) {
    Lanes sums[COUNT][2] = {};
    for (const int64_t end = std::min(i + PART, in); i < end; ++i, weights += TILE) {
      // Tiles lie one behind the other: what is asked for beyond the end of one is the next one's.
      for (int64_t at = 0; at < PAIR; at += 16) __builtin_prefetch(weights + 32 * TILE + at);
      const Lanes low = load(weights), high = load(weights + LANES);
      for (int r = 0; r < COUNT; ++r) {
        const float value = x[r][i];
        sums[r][0] += value * low;
        sums[r][1] += value * high;
      }
    }
    for (int r = 0; r < COUNT; ++r)
      for (int half = 0; half < 2; ++half) totals[r][half] += sums[r][half];
  }
  for (int r = 0; r < COUNT; ++r) {
    const int64_t at = (row + r) * linear.outputs + output;
    if (linear.residual) {
      totals[r][0] += load(linear.residual + at, low_count);
      if (high_count) totals[r][1] += load(linear.residual + at + LANES, high_count);
    }
    // A copy of unknown size is a call.
    if (high_count == LANES)
      std::memcpy(linear.out + at, totals[r], sizeof totals[r]);
    else
      std::memcpy(linear.out + at, totals[r], std::min(left, PAIR) * sizeof(float));
  }
}

template <int COUNT>
TARGET void multiply_rest(const Linear& linear, int64_t row, int64_t tile, int64_t first, int64_t rows) {
  if constexpr (COUNT > 0) {
    if (rows == COUNT) return multiply_block<COUNT>(linear, row, tile, first);
    multiply_rest<COUNT - 1>(linear, row, tile, first, rows);
  }
}

// Rows `begin` up to `end` times one tile.
TARGET void multiply(const Linear& linear, int64_t begin, int64_t end, int64_t tile) {
  for (int64_t first = 0; first < std::min(TILE, linear.outputs - tile * TILE); first += PAIR) {
    int64_t row = begin;
    for (; row + BLOCK <= end; row += BLOCK) multiply_block<BLOCK>(linear, row, tile, first);
    multiply_rest<BLOCK - 1>(linear, row, tile, first, end - row);
  }
}
