// Scores, their weights, and sums of values by these, for one set of vector registers (each_simd.h).
//
// A head's dims are whole registers and, where these do not come out even, one that begins inside the last of them,
// whose first lanes then do not count. So keys and values are read where they lie, and nothing behind them is touched.

TARGET inline Lanes load(const BFloat16* at) {
  using Halves __attribute__((vector_size(LANES * sizeof(uint16_t)))) = uint16_t;
  Halves halves;
  std::memcpy(&halves, at, sizeof halves);
  return reinterpret_cast<Lanes>(__builtin_convertvector(halves, Ints) << 16);
}

// 0 in the first lanes of the last register, which the one before has too, and 1 in the others.
TARGET inline Lanes new_lanes(int64_t dims) {
  Lanes lanes{};
  for (int64_t lane = LANES - dims % LANES; lane < LANES; ++lane) lanes[lane] = 1.0f;
  return lanes;
}

// Turn the scores of a run, behind which is room up to whole registers, into weights, 0 for what is out of range.
// Returns the factor of all weights before.
TARGET inline float take(Softmax& softmax, float* scores, int64_t position, int64_t count, const Range& range) {
  const int64_t begin = std::clamp<int64_t>(range.first - position, 0, count);
  const int64_t end = std::clamp<int64_t>(range.last + 1 - position, begin, count);
  const int64_t whole = (count + LANES - 1) / LANES * LANES;
  if (begin == end) {
    std::fill(scores, scores + whole, 0.0f);
    return 1.0f;
  }
  std::fill(scores, scores + begin, NEVER);
  std::fill(scores + end, scores + whole, NEVER);
  Lanes most = load(scores);
  for (int64_t k = LANES; k < whole; k += LANES) {
    const Lanes some = load(scores + k);
    most = some > most ? some : most;
  }
  const float before = softmax.largest;
  for (int lane = 0; lane < LANES; ++lane) softmax.largest = std::max(softmax.largest, most[lane]);
  Lanes sums{};
  for (int64_t k = 0; k < whole; k += LANES) {
    const Lanes weights = exp_of(load(scores + k) - softmax.largest);
    store(scores + k, weights);
    sums += weights;
  }
  const float factor = before == softmax.largest ? 1.0f : before == NEVER ? 0.0f : std::exp(before - softmax.largest);
  const Four sum = fold(sums);
  softmax.sum = softmax.sum * factor + ((sum[0] + sum[1]) + (sum[2] + sum[3]));
  return factor;
}

// Products of COUNT queries with four keys. Functions of their own, lest the sums lose their registers to what stands
// around them.
template <int COUNT, class P>
TARGET __attribute__((noinline)) void scores_of(const float* queries, const P* const (&keys)[4], int64_t dims,
                                                int64_t width, float* scores) {
  Lanes sums[COUNT][4] = {};
  int64_t at = 0;
  for (; at + LANES <= dims; at += LANES) {
    Lanes key[4];
    for (int k = 0; k < 4; ++k) key[k] = load(keys[k] + at);
    for (int q = 0; q < COUNT; ++q) {
      const Lanes query = load(queries + q * width + at);
      for (int k = 0; k < 4; ++k) sums[q][k] += query * key[k];
    }
  }
  if (at < dims) {
    Lanes key[4];
    for (int k = 0; k < 4; ++k) key[k] = load(keys[k] + dims - LANES);
    const Lanes fresh = new_lanes(dims);
    for (int q = 0; q < COUNT; ++q) {
      const Lanes query = load(queries + q * width + dims - LANES) * fresh;
      for (int k = 0; k < 4; ++k) sums[q][k] += query * key[k];
    }
  }
  for (int q = 0; q < COUNT; ++q) {
    const Four products = sums_of(sums[q]);
    std::memcpy(scores + q * SPACE, &products, sizeof products);
  }
}

// Products of queries (count, dims), `width` apart, with the keys of a page; up to three more scores are overwritten.
template <class P>
TARGET void score(const Slots<P>& keys, const float* queries, int64_t count, int64_t dims, int64_t width,
                  float* scores) {
  for (int64_t first = 0; first < keys.count; first += 4) {
    const P* four[4];
    for (int64_t k = 0; k < 4; ++k) four[k] = keys.of(std::min(first + k, keys.count - 1));
    int64_t q = 0;
    for (; q + ROWS <= count; q += ROWS)
      scores_of<ROWS>(queries + q * width, four, dims, width, scores + q * SPACE + first);
    for (; q < count; ++q) scores_of<1>(queries + q * width, four, dims, width, scores + q * SPACE + first);
  }
}

// Add to COUNT results their shares of the values from `at` on, WIDTH registers wide, times `fresh`.
template <int COUNT, int WIDTH, class P>
TARGET __attribute__((noinline)) void add_values(const Slots<P>& values, const float* weights, int64_t at,
                                                 int64_t width, const Lanes& fresh, float* results) {
  Lanes sums[COUNT][WIDTH] = {};
  for (int64_t k = 0; k < values.count; ++k) {
    Lanes value[WIDTH];
    for (int w = 0; w < WIDTH; ++w) value[w] = load(values.of(k) + at + w * LANES);
    for (int q = 0; q < COUNT; ++q)
      for (int w = 0; w < WIDTH; ++w) sums[q][w] += weights[q * SPACE + k] * value[w];
  }
  for (int q = 0; q < COUNT; ++q)
    for (int w = 0; w < WIDTH; ++w) {
      float* result = results + q * width + at + w * LANES;
      store(result, load(result) + sums[q][w] * fresh);
    }
}

template <int COUNT, class P>
TARGET void add_some(const Slots<P>& values, const float* weights, int64_t dims, int64_t width, float* results) {
  const Lanes all = Lanes{} + 1.0f;
  int64_t at = 0;
  if constexpr (COUNT == 1)
    for (; at + 4 * LANES <= dims; at += 4 * LANES)
      add_values<COUNT, 4>(values, weights, at, width, all, results);
  for (; at + 2 * LANES <= dims; at += 2 * LANES) add_values<COUNT, 2>(values, weights, at, width, all, results);
  for (; at + LANES <= dims; at += LANES) add_values<COUNT, 1>(values, weights, at, width, all, results);
  if (at < dims) add_values<COUNT, 1>(values, weights, dims - LANES, width, new_lanes(dims), results);
}

// Add the values of a page to results (count, dims), `width` apart.
template <class P>
TARGET void add(const Slots<P>& values, const float* weights, int64_t count, int64_t dims, int64_t width,
                float* results) {
  int64_t q = 0;
  for (; q + ROWS <= count; q += ROWS)
    add_some<ROWS>(values, weights + q * SPACE, dims, width, results + q * width);
  for (; q < count; ++q) add_some<1>(values, weights + q * SPACE, dims, width, results + q * width);
}
