// log_mel on the CPU, block by block of frames that stand side by side in the lanes of vector registers.
//
// A frame of 512 points and 128 bins is about 14,500 operations: 0.33 us of one core of 2.6 GHz with AVX-512, a third of
// them the DFT, which is bound by its stores (Zen 4 takes half a register of 512 bits a cycle).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "cpu.h"
#include "ops.h"
#include "tensors.h"

namespace fastspeech {
namespace {

constexpr int64_t GRAIN = 4;  // blocks that one thread has sooner than others are woken

// A DFT of 2 * `half` real points: one of `half` complex ones, in place, by decimation in frequency.
struct Transform {
  int64_t half;
  std::vector<float> turns;     // exp(-pi i k / half), its real and imaginary part in turn, k = 0 .. 2 * half - 1
  std::vector<int32_t> places;  // where frequency k of the complex transform is found, k = 0 .. half - 1

  explicit Transform(int64_t half) : half(half), turns(4 * half), places(half) {
    for (int64_t k = 0; k < 2 * half; ++k) {
      const double angle = M_PI * static_cast<double>(k) / static_cast<double>(half);
      turns[2 * k] = static_cast<float>(std::cos(angle));
      turns[2 * k + 1] = static_cast<float>(-std::sin(angle));
    }
    for (int64_t k = 0; k < half; ++k) {
      int64_t rest = k, group = half;
      while (group > 1) {
        const int64_t radix = group >= 4 ? 4 : 2;
        group /= radix;
        places[k] += static_cast<int32_t>(rest % radix * group);
        rest /= radix;
      }
    }
  }
};

const Transform& transform_of(int64_t half) {
  static std::mutex one_at_a_time;
  static std::map<int64_t, Transform> known;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  return known.try_emplace(half, half).first->second;
}

// Frequencies from `begin` up to `end`, outside of which a filter is 0.
struct Band {
  int64_t begin, end;
};

struct Spectra {
  const float* waveform;      // (rows, samples)
  const int64_t* lengths;     // (rows), or null
  std::vector<float> window;  // half of it, of which the halves of a transform are the sums and not the means
  const float* mel;           // (bins, frequencies)
  const Transform& transform;
  int64_t samples, frames, taps, hop, bins;
  int64_t before;  // samples from a frame's first to the one that it is said to be at
  bool per_frame;
  float preemphasis, offset, floor;
  std::vector<Band> bands;  // of the bins
  float* out;               // (rows, frames, bins)

  int64_t points() const { return 2 * transform.half; }
  int64_t end(int64_t row) const { return lengths ? std::clamp<int64_t>(lengths[row], 0, samples) : samples; }
};

#define EACH_SIMD "log_mel_block.h"
#include "each_simd.h"

}  // namespace

void log_mel_cpu(const Tensor& waveform, const std::optional<Tensor>& lengths, const Tensor& window, const Tensor& mel,
                 int64_t n_fft, int64_t hop, double preemphasis, bool per_frame, double log_offset, double log_floor,
                 const Tensor& out) {
  static const auto measure = BEST_SIMD(measure);
  static const auto find_band = BEST_SIMD(find_band);
  static const int64_t lanes = BEST_SIMD(lanes)();
  const int64_t taps = window.size(0), bins = mel.size(0);
  const float* taps_of = window.const_data_ptr<float>();
  Spectra spectra{
      waveform.const_data_ptr<float>(),
      data_of<int64_t>(lengths),
      {taps_of, taps_of + taps},
      mel.const_data_ptr<float>(),
      transform_of(n_fft / 2),
      waveform.size(1),
      out.size(1),
      taps,
      hop,
      bins,
      // Where among the points its taps lie changes no power of a frame: they come first.
      per_frame ? 0 : n_fft / 2 - (n_fft - taps) / 2,
      per_frame,
      static_cast<float>(preemphasis),
      static_cast<float>(log_offset),
      static_cast<float>(log_floor),
      {},
      out.mutable_data_ptr<float>(),
  };
  for (float& tap : spectra.window) tap *= 0.5f;
  for (int64_t bin = 0; bin < bins; ++bin) spectra.bands.push_back(find_band(spectra, bin));
  const int64_t blocks = (spectra.frames + lanes - 1) / lanes;
  torch::stable::parallel_for(0, out.size(0) * blocks, GRAIN, [&](int64_t begin, int64_t end) {
    measure(spectra, blocks, begin, end);
  });
}

}  // namespace fastspeech
