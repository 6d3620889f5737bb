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

TARGET inline void store(float* at, const Lanes& lanes) { std::memcpy(at, &lanes, sizeof lanes); }

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
