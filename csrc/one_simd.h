namespace SIMD {
#include "simd.h"

#include EACH_SIMD
}  // namespace SIMD

#undef SIMD
#undef TARGET
#undef LANES
#undef ROWS
