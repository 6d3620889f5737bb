// ELU, for one set of vector registers (each_simd.h).

TARGET void elu_of(const float* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += LANES) {
    const int64_t some = std::min<int64_t>(LANES, count - i);
    const Lanes x = load(from + i, some);
    const Lanes y = x > 0.0f ? x : exp_of(x > 0.0f ? Lanes{} : x) - 1.0f;
    std::memcpy(to + i, &y, some * sizeof(float));
  }
}
