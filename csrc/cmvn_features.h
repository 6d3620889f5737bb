// Up to LANES features of one row, for one set of vector registers (each_simd.h).
//
// Log-mel features of quiet audio sit near -16 with a spread of 1e-3 or less, where the rounding of the mean alone would
// show. The centred values, whose sum would be 0 if the mean were exact, say how far it is off, and that is taken off too
// (the corrected two-pass algorithm of Chan, Golub and LeVeque, The American Statistician 37, 1983).

TARGET void normalise(const Features& of, int64_t row, int64_t first) {
  const int64_t some = std::min<int64_t>(LANES, of.width - first), begins = row * of.frames * of.width + first;
  const int64_t length = std::clamp<int64_t>(of.lengths[row], 0, of.frames);
  const float* x = of.x + begins;
  float* out = of.out + begins;
  const float count = static_cast<float>(std::max<int64_t>(length, 1));

  Lanes total{}, rest{}, squares{};
  for (int64_t begin = 0; begin < length; begin += RUN) {
    Lanes sum{};
    for (int64_t t = begin; t < std::min(begin + RUN, length); ++t) sum += load(x + t * of.width, some);
    total += sum;
  }
  const Lanes mean = total / count;
  for (int64_t begin = 0; begin < length; begin += RUN) {
    Lanes sum{}, square{};
    for (int64_t t = begin; t < std::min(begin + RUN, length); ++t) {
      const Lanes centred = load(x + t * of.width, some) - mean;
      sum += centred;
      square += centred * centred;
    }
    rest += sum;
    squares += square;
  }
  const Lanes missed = rest / count;
  Lanes factor = (squares - missed * rest) / static_cast<float>(std::max<int64_t>(length - of.ddof, 1));
  for (int lane = 0; lane < LANES; ++lane) factor[lane] = 1.0f / (std::sqrt(std::max(factor[lane], of.floor)) + of.eps);
  for (int64_t t = 0; t < length; ++t)
    store(out + t * of.width, (load(x + t * of.width, some) - mean - missed) * factor, some);
  for (int64_t t = length; t < of.frames; ++t) store(out + t * of.width, Lanes{}, some);
}

TARGET int64_t lanes() { return LANES; }
