// Includes the file EACH_SIMD once for each set of vector registers that a processor may have, in a namespace SIMD of its
// own. Its functions have the attribute TARGET, and find there registers of LANES values (simd.h) and ROWS, the vectors
// whose products with four others they hold sums of.

#define SIMD four_lanes
#define TARGET
#define LANES 4
#define ROWS 2
#include "one_simd.h"

#ifdef __x86_64__
#define SIMD avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define ROWS 2
#include "one_simd.h"

#define SIMD avx512
#define TARGET __attribute__((target("avx512f")))
#define LANES 16
#define ROWS 4
#include "one_simd.h"
#endif

#undef EACH_SIMD
