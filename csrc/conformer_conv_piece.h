// A frame's CHANNELS channels, for one set of vector registers (each_simd.h).

// 1 / (1 + exp(-x)), of an exponential that cannot overflow.
TARGET inline Lanes sigmoid(const Lanes& x) {
  const Lanes small = exp_of(x > 0.0f ? -x : x);
  return (x > 0.0f ? Lanes{} + 1.0f : small) / (1.0f + small);
}

TARGET void gate(const float* values, const float* gates, float* gated) {
  for (int64_t c = 0; c < CHANNELS; c += LANES) store(gated + c, load(values + c) * sigmoid(load(gates + c)));
}

// SiLU of the bias, which is the first of `filters`, and the sum over `taps` frames from `gated` on.
TARGET void filter(const float* gated, const float* filters, int64_t taps, float* made) {
  constexpr int COUNT = LANES == 16 ? CHANNELS / LANES : 4;
  for (int64_t c = 0; c < CHANNELS; c += COUNT * LANES) {
    Lanes sums[COUNT];
    for (int k = 0; k < COUNT; ++k) sums[k] = load(filters + c + k * LANES);
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int k = 0; k < COUNT; ++k) {
        const int64_t at = tap * CHANNELS + c + k * LANES;
        sums[k] += load(gated + at) * load(filters + CHANNELS + at);
      }
    for (int k = 0; k < COUNT; ++k) store(made + c + k * LANES, sums[k] * sigmoid(sums[k]));
  }
}
