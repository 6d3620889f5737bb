// cmvn on the CPU: a few features of a row of the batch at a time, whose frames the core's caches hold while they are
// walked for the mean, for the variance, and for the result.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu.h"
#include "ops.h"

namespace fastspeech {
namespace {

constexpr int64_t GRAIN = 1 << 14;  // values that one thread normalises sooner than others are woken
constexpr int64_t RUN = 64;         // frames that are summed up before they are added to the others

struct Features {
  const float* x;          // (rows, frames, width)
  const int64_t* lengths;  // (rows)
  int64_t frames, width, ddof;
  float eps, floor;
  float* out;  // as x
};

#define EACH_SIMD "cmvn_features.h"
#include "each_simd.h"

}  // namespace

void cmvn_cpu(const Tensor& features, const Tensor& lengths, int64_t ddof, double eps, double variance_floor,
              const Tensor& out) {
  static const auto normalise = BEST_SIMD(normalise);
  static const int64_t lanes = BEST_SIMD(lanes)();
  const Features of{
      features.const_data_ptr<float>(),
      lengths.const_data_ptr<int64_t>(),
      features.size(1),
      features.size(2),
      ddof,
      static_cast<float>(eps),
      static_cast<float>(variance_floor),
      out.mutable_data_ptr<float>(),
  };
  const int64_t parts = (of.width + lanes - 1) / lanes;
  const int64_t grain = std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, of.frames * lanes));
  torch::stable::parallel_for(0, features.size(0) * parts, grain, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) normalise(of, part / parts, part % parts * lanes);
  });
}

}  // namespace fastspeech
