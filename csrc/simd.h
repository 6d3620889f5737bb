// Registers of LANES values, in the namespace SIMD. Included by each_simd.h.

using Lanes __attribute__((vector_size(LANES * sizeof(float)))) = float;
using Ints __attribute__((vector_size(LANES * sizeof(float)))) = int32_t;
using Unaligned __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias)) = float;

// LANES values, or the `count` that are left of a vector and zeros.
TARGET inline Lanes load(const float* at, int64_t count = LANES) {
  if (count >= LANES) return *reinterpret_cast<const Unaligned*>(at);
  Lanes lanes{};
  std::memcpy(&lanes, at, count * sizeof(float));
  return lanes;
}

// Stores LANES values, or the `count` first.
TARGET inline void store(float* at, const Lanes& lanes, int64_t count = LANES) {
  if (count >= LANES) std::memcpy(at, &lanes, sizeof lanes);
  else std::memcpy(at, &lanes, count * sizeof(float));
}

// exp of what is not positive, to 2 ulp; 0 where that would be below 2^-126.
TARGET inline Lanes exp_of(const Lanes& x) {
  constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: whole numbers are all there is at its size
  const Lanes shifted = x * 1.44269504f + ROUND;
  const Lanes n = shifted - ROUND;
  const Lanes r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  // Cephes' expf (Moshier 1984).
  Lanes y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  const Ints power = (reinterpret_cast<Ints>(shifted) << 23) + (127 << 23);
  const Lanes found = y * reinterpret_cast<Lanes>(power);
  return reinterpret_cast<Lanes>(reinterpret_cast<Ints>(found) & ~(x <= -87.0f));
}

// log of what is positive, subnormal numbers included, to 2 ulp; what is infinite or NaN stays so.
TARGET inline Lanes log_of(const Lanes& x) {
  const Lanes normal = x < 1.17549435e-38f ? x * 8388608.0f : x;
  // x = m 2^e, m from sqrt(1/2) up to sqrt(2).
  const Ints bits = reinterpret_cast<Ints>(normal), exponent = (bits - 0x3f3504f3) >> 23;
  const Lanes r = reinterpret_cast<Lanes>(bits - (exponent << 23)) - 1.0f;
  const Lanes e = __builtin_convertvector(exponent, Lanes) - (x < 1.17549435e-38f ? Lanes{} + 23.0f : Lanes{});
  // Cephes' logf (Moshier 1984).
  Lanes y = r * 7.0376836292e-2f - 1.1514610310e-1f;
  y = y * r + 1.1676998740e-1f;
  y = y * r - 1.2420140846e-1f;
  y = y * r + 1.4249322787e-1f;
  y = y * r - 1.6668057665e-1f;
  y = y * r + 2.0000714765e-1f;
  y = y * r - 2.4999993993e-1f;
  y = y * r + 3.3333331174e-1f;
  y = y * r * (r * r) - e * 2.12194440e-4f;
  const Lanes found = (r + (y - 0.5f * (r * r))) + e * 0.693359375f;
  return x < INFINITY ? found : x;
}

TARGET inline Four fold(const Lanes& lanes) {
#if LANES == 16
  using Eight __attribute__((vector_size(8 * sizeof(float)))) = float;
  const Eight half = __builtin_shufflevector(lanes, lanes, 0, 1, 2, 3, 4, 5, 6, 7) +
                     __builtin_shufflevector(lanes, lanes, 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_shufflevector(half, half, 0, 1, 2, 3) + __builtin_shufflevector(half, half, 4, 5, 6, 7);
#elif LANES == 8
  return __builtin_shufflevector(lanes, lanes, 0, 1, 2, 3) + __builtin_shufflevector(lanes, lanes, 4, 5, 6, 7);
#else
  return lanes;
#endif
}

// The sum of the lanes of each of four.
TARGET inline Four sums_of(const Lanes (&of)[4]) {
  const Four a = fold(of[0]), b = fold(of[1]), c = fold(of[2]), d = fold(of[3]);
  const Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Four cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}

// The lanes of a and b in turn, a's first: those of their lower halves, then of their upper ones.
TARGET inline void interleave(const Lanes& a, const Lanes& b, Lanes& lower, Lanes& upper) {
#if LANES == 16
  lower = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  upper = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif LANES == 8
  lower = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  upper = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  lower = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  upper = __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}

// Rows become columns: each round moves one bit of a row's number into that of a lane.
TARGET inline void transpose(Lanes (&rows)[LANES]) {
#pragma GCC unroll 4
  for (int round = 1; round < LANES; round *= 2) {
    Lanes next[LANES];
#pragma GCC unroll 8
    for (int i = 0; i < LANES / 2; ++i) interleave(rows[i], rows[i + LANES / 2], next[2 * i], next[2 * i + 1]);
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) rows[i] = next[i];
  }
}
