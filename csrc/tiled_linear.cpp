// tiled_linear on the CPU.
//
// A decoding step reads every weight for a few rows, so what counts is that the weights stream by once, in the order in
// which they lie: a block of rows keeps its sums with a tile's outputs in registers while the tile is read.
#include <algorithm>
#include <cstring>

#include "cpu.h"
#include "linear.h"
#include "ops.h"
#include "tensors.h"

namespace fastspeech {
namespace {

constexpr int64_t PIECE = 512;  // rows that a thread takes with a tile

#define EACH_SIMD "tiled_linear_rows.h"
#include "each_simd.h"

}  // namespace

void multiply(const Linear& linear) {
  static const auto multiply = BEST_SIMD(multiply);
  const int64_t tiles = (linear.outputs + TILE - 1) / TILE, pieces = (linear.rows + PIECE - 1) / PIECE;
  // Less than this is read sooner by one thread than others are woken.
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(linear.in * TILE, 1));
  torch::stable::parallel_for(0, pieces * tiles, grain, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item / tiles * PIECE;
      multiply(linear, first, std::min(first + PIECE, linear.rows), item % tiles);
    }
  });
}

void tiled_linear_cpu(const Tensor& x, const Tensor& tiles, const std::optional<Tensor>& bias, const Tensor& out) {
  const int64_t outputs = out.size(-1), rows = out.numel() / std::max<int64_t>(outputs, 1), in = tiles.size(1);
  multiply({x.const_data_ptr<float>(), tiles.const_data_ptr<float>(), data_of<float>(bias), nullptr,
            out.mutable_data_ptr<float>(), rows, in, outputs, std::max<int64_t>(rows, 1), in, 0});
}

}  // namespace fastspeech
