// Attention of some queries over a run of keys, for one set of vector registers (each_simd.h).

// Products of COUNT queries with four keys, all of them `width` values: whole registers. Functions of their own, lest the
// sums lose their registers to what stands around them.
template <int COUNT>
TARGET __attribute__((noinline)) void scores_of(const float* queries, const float* const* keys, int64_t width,
                                                float* scores) {
  Lanes sums[COUNT][4] = {};
  for (int64_t at = 0; at < width; at += LANES) {
    Lanes key[4];
    for (int k = 0; k < 4; ++k) key[k] = load(keys[k] + at);
    for (int q = 0; q < COUNT; ++q) {
      const Lanes query = load(queries + q * width + at);
      for (int k = 0; k < 4; ++k) sums[q][k] += query * key[k];
    }
  }
  for (int q = 0; q < COUNT; ++q) {
    const Four products = sums_of(sums[q]);
    std::memcpy(scores + q * RUN, &products, sizeof products);
  }
}

// Add to COUNT results their shares of the values from `at` on, WIDTH registers wide.
template <int COUNT, int WIDTH>
TARGET __attribute__((noinline)) void add_values(const float* weights, const float* const* values, int64_t count,
                                                 int64_t at, int64_t width, float* results) {
  Lanes sums[COUNT][WIDTH];
  for (int q = 0; q < COUNT; ++q)
    for (int w = 0; w < WIDTH; ++w) sums[q][w] = load(results + q * width + at + w * LANES);
  for (int64_t k = 0; k < count; ++k) {
    Lanes value[WIDTH];
    for (int w = 0; w < WIDTH; ++w) value[w] = load(values[k] + at + w * LANES);
    for (int q = 0; q < COUNT; ++q)
      for (int w = 0; w < WIDTH; ++w) sums[q][w] += weights[q * RUN + k] * value[w];
  }
  for (int q = 0; q < COUNT; ++q)
    for (int w = 0; w < WIDTH; ++w) std::memcpy(results + q * width + at + w * LANES, &sums[q][w], sizeof(Lanes));
}

template <int COUNT>
TARGET void attend_some(const Run& run, const float* queries, int64_t width, const Range* ranges, Softmax* softmax,
                        float* results) {
  if (ranges[COUNT - 1].last < run.position || ranges[0].first >= run.position + run.count) return;
  float scores[COUNT * RUN];
  for (int64_t first = 0; first < run.count; first += 4) {
    const float* keys[4];
    for (int64_t k = 0; k < 4; ++k) keys[k] = run.keys[std::min(first + k, run.count - 1)];
    scores_of<COUNT>(queries, keys, width, scores + first);
  }
  for (int q = 0; q < COUNT; ++q) {
    const float factor = softmax[q].take(scores + q * RUN, run, ranges[q]);
    if (factor != 1.0f)
      for (int64_t d = 0; d < width; ++d) results[q * width + d] *= factor;
  }
  constexpr int WIDTH = COUNT == 1 ? 4 : 2;
  int64_t at = 0;
  for (; at + WIDTH * LANES <= width; at += WIDTH * LANES)
    add_values<COUNT, WIDTH>(scores, run.values, run.count, at, width, results);
  for (; at < width; at += LANES) add_values<COUNT, 1>(scores, run.values, run.count, at, width, results);
}

// Let queries (count, width), whose ranges begin and end in their order, see what they may of a run.
TARGET void attend(const Run& run, const float* queries, int64_t count, int64_t width, const Range* ranges,
                   Softmax* softmax, float* results) {
  int64_t q = 0;
  for (; q + ROWS <= count; q += ROWS)
    attend_some<ROWS>(run, queries + q * width, width, ranges + q, softmax + q, results + q * width);
  for (; q < count; ++q)
    attend_some<1>(run, queries + q * width, width, ranges + q, softmax + q, results + q * width);
}
