// tiled_linear on the CPU.
//
// A decoding step reads every weight for a few rows, so what counts is that the weights stream by once, in the order in
// which they lie: a block of rows keeps its sums with a tile's outputs in registers while the tile is read.
#include <algorithm>
#include <cstring>

#include "cpu.h"
#include "ops.h"

namespace fastspeech {
namespace {

constexpr int64_t TILE = 32;  // outputs

// What one tile is a part of.
struct Linear {
  const float* x;      // (rows, in)
  const float* tiles;  // (tiles, in, TILE)
  const float* bias;   // (out) or null
  float* out;          // (rows, out)
  int64_t rows, in, outputs;
};

#define EACH_SIMD "tiled_linear_rows.h"
#include "each_simd.h"

}  // namespace

void tiled_linear_cpu(const Tensor& x, const Tensor& tiles, const std::optional<Tensor>& bias, const Tensor& out) {
  static const auto multiply = BEST_SIMD(multiply);
  const int64_t outputs = out.size(-1);
  const Linear linear{
      x.const_data_ptr<float>(), tiles.const_data_ptr<float>(), bias ? bias->const_data_ptr<float>() : nullptr,
      out.mutable_data_ptr<float>(), out.numel() / std::max<int64_t>(outputs, 1), tiles.size(1), outputs,
  };
  // Less than this is read sooner by one thread than others are woken.
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(linear.in * TILE, 1));
  torch::stable::parallel_for(0, tiles.size(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) multiply(linear, tile);
  });
}

}  // namespace fastspeech
