// Registers of LANES values, in the namespace SIMD. Included by each_simd.h.

using Lanes __attribute__((vector_size(LANES * sizeof(float)))) = float;
using Unaligned __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias)) = float;

// LANES values, or the `count` that are left of a vector and zeros.
TARGET inline Lanes load(const float* at, int64_t count = LANES) {
  if (count >= LANES) return *reinterpret_cast<const Unaligned*>(at);
  Lanes lanes{};
  std::memcpy(&lanes, at, count * sizeof(float));
  return lanes;
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
