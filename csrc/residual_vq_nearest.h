// The nearest entries, for one set of vector registers (each_simd.h).

// The squares of a group of entries, one entry after the other: this pass is the first to read them from memory.
template <bool WHOLE>
TARGET inline Four squares_of(const float* const* entries, int64_t dim) {
  Lanes sums[ENTRIES];
  for (int e = 0; e < ENTRIES; ++e) {
    Lanes sum{};
    for (int64_t at = 0; at < dim; at += LANES) {
      const Lanes entry = load(entries[e] + at, WHOLE ? LANES : dim - at);
      sum += entry * entry;
    }
    sums[e] = sum;
  }
  return sums_of(sums);
}

// COUNT vectors against a group of entries. WHOLE: the dimension is a multiple of LANES. A function of its own, lest
// the sums lose their registers to what stands around it.
template <int COUNT, bool WHOLE>
TARGET __attribute__((noinline)) void compare(const float* residuals, const Group& group, const Four& squares,
                                              int64_t dim, Best* best) {
  Lanes sums[COUNT][ENTRIES] = {};
  for (int64_t at = 0; at < dim; at += LANES) {
    Lanes entry[ENTRIES];
    for (int e = 0; e < ENTRIES; ++e) entry[e] = load(group.entries[e] + at, WHOLE ? LANES : dim - at);
    for (int r = 0; r < COUNT; ++r) {
      const Lanes residual = load(residuals + r * dim + at, WHOLE ? LANES : dim - at);
      for (int e = 0; e < ENTRIES; ++e) sums[r][e] += residual * entry[e];
    }
  }
  for (int r = 0; r < COUNT; ++r) {
    const Four product = sums_of(sums[r]);
    float distances[ENTRIES];
    for (int e = 0; e < ENTRIES; ++e) distances[e] = distance(squares[e], product[e]);
    // Seldom true: the distances stay in registers.
    if (std::min(std::min(distances[0], distances[1]), std::min(distances[2], distances[3])) < best[r].distance)
      for (int e = 0; e < ENTRIES; ++e)
        if (distances[e] < best[r].distance) best[r] = {distances[e], static_cast<uint32_t>(group.first + e)};
  }
}

template <bool WHOLE>
TARGET void nearest_among(const float* residuals, int64_t vectors, const Codebooks& codebooks, int64_t level,
                          int64_t begin, int64_t end, Best* best) {
  const int64_t dim = codebooks.dim;
  // Few vectors stay in the first-level cache, where each group passes all of them. Of many, it takes a block at a
  // time, to which many groups come from the second-level cache.
  const int64_t step = vectors > BLOCK ? CHUNK : ENTRIES;
  Four squares[CHUNK / ENTRIES];
  for (int64_t chunk = begin; chunk < end; chunk += step) {
    const int64_t stop = std::min(chunk + step, end);
    for (int64_t first = chunk; first < stop; first += ENTRIES)
      squares[(first - chunk) / ENTRIES] = squares_of<WHOLE>(Group(codebooks, level, first, stop).entries, dim);
    for (int64_t block = 0; block < vectors; block += BLOCK) {
      const int64_t last = std::min(block + BLOCK, vectors);
      for (int64_t first = chunk; first < stop; first += ENTRIES) {
        const Group group(codebooks, level, first, stop);
        const Four square = squares[(first - chunk) / ENTRIES];
        int64_t row = block;
        for (; row + ROWS <= last; row += ROWS)
          compare<ROWS, WHOLE>(residuals + row * dim, group, square, dim, best + row);
        for (; row < last; ++row) compare<1, WHOLE>(residuals + row * dim, group, square, dim, best + row);
      }
    }
  }
}

// The nearest of the entries begin .. end - 1 of a level, to each of the residuals (vectors, dim).
TARGET void nearest(const float* residuals, int64_t vectors, const Codebooks& codebooks, int64_t level, int64_t begin,
                    int64_t end, Best* best) {
  if (codebooks.dim % LANES == 0)
    nearest_among<true>(residuals, vectors, codebooks, level, begin, end, best);
  else
    nearest_among<false>(residuals, vectors, codebooks, level, begin, end, best);
}
