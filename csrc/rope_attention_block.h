// Attention of a block of queries of one head, for one set of vector registers (each_simd.h). The queries stand side by
// side in the lanes, so that nothing is summed across these, and each number of a key or a value meets all of them.

// Sums that stay in registers; there are 32 of AVX-512, and 16 otherwise.
constexpr int KEYS = LANES == 16 ? 8 : 4, DIMS = LANES == 16 ? 12 : 4;

// Scores of KEYS keys; of those that are not there any more, of the last again.
template <int VECTORS>
TARGET __attribute__((noinline)) void score_keys(const Lanes (*queries)[VECTORS], const float* keys, int64_t count,
                                                 int64_t dims, Lanes (*scores)[VECTORS]) {
  const float* key[KEYS];
  for (int64_t k = 0; k < KEYS; ++k) key[k] = keys + std::min(k, count - 1) * dims;
  Lanes sums[KEYS][VECTORS];
  for (int k = 0; k < KEYS; ++k)
    for (int v = 0; v < VECTORS; ++v) sums[k][v] = queries[0][v] * key[k][0];
  for (int64_t d = 1; d < dims; ++d)
    for (int k = 0; k < KEYS; ++k)
      for (int v = 0; v < VECTORS; ++v) sums[k][v] += queries[d][v] * key[k][d];
  for (int k = 0; k < KEYS; ++k)
    for (int v = 0; v < VECTORS; ++v) scores[k][v] = sums[k][v];
}

// Add COUNT dims of values to the results.
template <int VECTORS, int COUNT>
TARGET __attribute__((noinline)) void add_values(const Lanes (*weights)[VECTORS], const float* values, int64_t count,
                                                 int64_t dims, const Lanes* factor, Lanes (*results)[VECTORS]) {
  Lanes sums[COUNT][VECTORS];
  for (int d = 0; d < COUNT; ++d)
    for (int v = 0; v < VECTORS; ++v) sums[d][v] = results[d][v] * factor[v];
  for (int64_t k = 0; k < count; ++k, values += dims)
    for (int d = 0; d < COUNT; ++d)
      for (int v = 0; v < VECTORS; ++v) sums[d][v] += weights[k][v] * values[d];
  for (int d = 0; d < COUNT; ++d)
    for (int v = 0; v < VECTORS; ++v) results[d][v] = sums[d][v];
}

// Let queries (dims, VECTORS * LANES), the first of which stands at key `place`, see the keys and values (keys, dims)
// from `begin` up to `end`; with `sight`, each only its own key and the sight - 1 before it. What they get is put where
// they were.
template <int VECTORS>
TARGET void attend_block(float* block, const float* keys, const float* values, int64_t dims, int64_t begin, int64_t end,
                         int64_t place, int64_t sight, float* room) {
  auto* queries = reinterpret_cast<Lanes(*)[VECTORS]>(block);
  auto* results = reinterpret_cast<Lanes(*)[VECTORS]>(room);
  auto* scores = results + dims;
  Lanes largest[VECTORS], sum[VECTORS];
  Ints own[VECTORS];
  for (int v = 0; v < VECTORS; ++v) {
    largest[v] = Lanes{} + NEVER;
    sum[v] = Lanes{};
    for (int lane = 0; lane < LANES; ++lane) own[v][lane] = static_cast<int32_t>(place + v * LANES + lane);
  }
  std::fill_n(room, dims * VECTORS * LANES, 0.0f);
  const int64_t last = place + VECTORS * LANES - 1;
  for (int64_t first = begin; first < end; first += RUN) {
    const int64_t count = std::min(RUN, end - first);
    for (int64_t k = 0; k < count; k += KEYS)
      score_keys<VECTORS>(queries, keys + (first + k) * dims, count - k, dims, scores + k);
    if (sight && (first + count - 1 > place || last - first >= sight))
      for (int64_t k = 0; k < count; ++k)
        for (int v = 0; v < VECTORS; ++v) {
          const Ints behind = own[v] - static_cast<int32_t>(first + k);
          scores[k][v] = (behind >= 0) & (behind < static_cast<int32_t>(sight)) ? scores[k][v] : Lanes{} + NEVER;
        }
    // The registers in turn: what one waits for is done for the other.
    Lanes most[VECTORS], base[VECTORS], factor[VECTORS], total[VECTORS] = {};
    for (int v = 0; v < VECTORS; ++v) most[v] = largest[v];
    for (int64_t k = 0; k < count; ++k)
      for (int v = 0; v < VECTORS; ++v) most[v] = scores[k][v] > most[v] ? scores[k][v] : most[v];
    for (int v = 0; v < VECTORS; ++v) {
      // A query that has seen nothing yet goes on so.
      base[v] = most[v] == NEVER ? Lanes{} : most[v];
      factor[v] = exp_of(largest[v] - base[v]);
      largest[v] = most[v];
    }
    for (int64_t k = 0; k < count; ++k)
      for (int v = 0; v < VECTORS; ++v) {
        scores[k][v] = exp_of(scores[k][v] - base[v]);
        total[v] += scores[k][v];
      }
    for (int v = 0; v < VECTORS; ++v) sum[v] = sum[v] * factor[v] + total[v];
    const float* from = values + first * dims;
    int64_t d = 0;
    for (; d + DIMS <= dims; d += DIMS) add_values<VECTORS, DIMS>(scores, from + d, count, dims, factor, results + d);
    for (; d + 4 <= dims; d += 4) add_values<VECTORS, 4>(scores, from + d, count, dims, factor, results + d);
    for (; d < dims; ++d) add_values<VECTORS, 1>(scores, from + d, count, dims, factor, results + d);
  }
  for (int v = 0; v < VECTORS; ++v) {
    const Lanes share = sum[v] == 0.0f ? Lanes{} : 1.0f / sum[v];
    for (int64_t d = 0; d < dims; ++d) queries[d][v] = results[d][v] * share;
  }
}

// The lanes of a register. A block has one or two registers of queries.
TARGET int64_t lanes() { return LANES; }

TARGET void attend(float* block, int64_t count, const float* keys, const float* values, int64_t dims, int64_t begin,
                   int64_t end, int64_t place, int64_t sight, float* room) {
  if (count > LANES)
    attend_block<2>(block, keys, values, dims, begin, end, place, sight, room);
  else
    attend_block<1>(block, keys, values, dims, begin, end, place, sight, room);
}
