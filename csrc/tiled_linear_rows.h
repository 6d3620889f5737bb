// Rows times a tile, for one set of vector registers (each_simd.h).

constexpr int64_t PAIR = 2 * LANES;                // outputs whose sums a block of rows holds
constexpr int BLOCK = LANES == 16 ? 8 : 4;         // rows; there are 32 registers of AVX-512, and 16 otherwise

template <int COUNT>
TARGET __attribute__((noinline)) void multiply_block(const Linear& linear, int64_t row, int64_t tile, int64_t first) {
  const int64_t in = linear.in, output = tile * TILE + first, left = linear.outputs - output;
  const float* x = linear.x + row * in;
  const float* weights = linear.tiles + tile * in * TILE + first;
  Lanes sums[COUNT][2];
  for (int half = 0; half < 2; ++half) {
    const int64_t count = std::clamp<int64_t>(left - half * LANES, 0, LANES);
    const Lanes bias = linear.bias && count ? load(linear.bias + output + half * LANES, count) : Lanes{};
    for (int r = 0; r < COUNT; ++r) sums[r][half] = bias;
  }
  for (int64_t i = 0; i < in; ++i, weights += TILE) {
    // Tiles lie one behind the other: what is asked for beyond the end of one is the next one's.
    for (int64_t at = 0; at < PAIR; at += 16) __builtin_prefetch(weights + 32 * TILE + at);
    const Lanes low = load(weights), high = load(weights + LANES);
    for (int r = 0; r < COUNT; ++r) {
      const float value = x[r * in + i];
      sums[r][0] += value * low;
      sums[r][1] += value * high;
    }
  }
  for (int r = 0; r < COUNT; ++r) {
    float* out = linear.out + (row + r) * linear.outputs + output;
    std::memcpy(out, sums[r], std::min(left, PAIR) * sizeof(float));
  }
}

template <int COUNT>
TARGET void multiply_rest(const Linear& linear, int64_t row, int64_t tile, int64_t first, int64_t rows) {
  if constexpr (COUNT > 0) {
    if (rows == COUNT) return multiply_block<COUNT>(linear, row, tile, first);
    multiply_rest<COUNT - 1>(linear, row, tile, first, rows);
  }
}

// All rows times one tile.
TARGET void multiply(const Linear& linear, int64_t tile) {
  for (int64_t first = 0; first < std::min(TILE, linear.outputs - tile * TILE); first += PAIR) {
    int64_t row = 0;
    for (; row + BLOCK <= linear.rows; row += BLOCK) multiply_block<BLOCK>(linear, row, tile, first);
    multiply_rest<BLOCK - 1>(linear, row, tile, first, linear.rows - row);
  }
}
