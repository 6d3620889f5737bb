// conformer_conv on the CPU: of some frames and channels at a time, what passes the gate is kept in the cache while the
// filter runs over it. All in float32.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu.h"
#include "ops.h"
#include "tensors.h"

namespace fastspeech {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;

constexpr int64_t FRAMES = 64;    // that a piece has, and the filter's reach around them
constexpr int64_t CHANNELS = 64;  // of a piece: four registers of AVX-512

#define EACH_SIMD "conformer_conv_piece.h"
#include "each_simd.h"

template <class T>
void convolve_all(const Tensor& x, const float* weight, const float* bias, const int64_t* lengths, int64_t taps,
                  const Tensor& out) {
  static const auto gate = BEST_SIMD(gate);
  static const auto filter = BEST_SIMD(filter);
  const int64_t batch = out.size(0), frames = out.size(1), channels = out.size(2), reach = taps / 2;
  const int64_t runs = (frames + FRAMES - 1) / FRAMES, groups = (channels + CHANNELS - 1) / CHANNELS;
  const T* from = static_cast<const T*>(x.const_data_ptr());
  T* to = static_cast<T*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, batch * runs * groups, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> gated((FRAMES + taps) * CHANNELS), filters((taps + 1) * CHANNELS);
    float halves[2][CHANNELS] = {}, made[CHANNELS];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t row = item / groups / runs, first = item / groups % runs * FRAMES, channel = item % groups * CHANNELS;
      const int64_t count = std::min(CHANNELS, channels - channel), last = std::min(first + FRAMES, frames);
      const int64_t valid = lengths ? std::clamp<int64_t>(lengths[row], 0, frames) : frames;
      std::fill(filters.begin(), filters.end(), 0.0f);
      for (int64_t c = 0; c < count; ++c) {
        filters[c] = bias[channel + c];
        for (int64_t tap = 0; tap < taps; ++tap) filters[(tap + 1) * CHANNELS + c] = weight[(channel + c) * taps + tap];
      }
      for (int64_t t = first - reach; t < last + reach; ++t) {
        float* here = gated.data() + (t - first + reach) * CHANNELS;
        if (t < 0 || t >= valid) {
          std::fill_n(here, CHANNELS, 0.0f);
          continue;
        }
        const T* frame = from + (row * frames + t) * 2 * channels + channel;
        for (int64_t c = 0; c < count; ++c) {
          halves[0][c] = static_cast<float>(frame[c]);
          halves[1][c] = static_cast<float>(frame[channels + c]);
        }
        gate(halves[0], halves[1], here);
      }
      for (int64_t t = first; t < last; ++t) {
        filter(gated.data() + (t - first) * CHANNELS, filters.data(), taps, made);
        T* there = to + (row * frames + t) * channels + channel;
        for (int64_t c = 0; c < count; ++c) there[c] = static_cast<T>(made[c]);
      }
    }
  });
}

}  // namespace

void conformer_conv_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& lengths,
                        const Tensor& out) {
  const float *filter = weight.const_data_ptr<float>(), *offset = bias.const_data_ptr<float>();
  const int64_t* valid = data_of<int64_t>(lengths);
  const int64_t taps = weight.size(1);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return convolve_all<float>(x, filter, offset, valid, taps, out);
    case ScalarType::BFloat16:
      return convolve_all<BFloat16>(x, filter, offset, valid, taps, out);
    case ScalarType::Half:
      return convolve_all<Half>(x, filter, offset, valid, taps, out);
    default:
      STD_TORCH_CHECK(false, "conformer_conv takes float32, bfloat16 and float16");
  }
}

}  // namespace fastspeech
