// causal_conv on the CPU: what the filters see is laid out once, behind ELU, and its windows, which overlap, are the rows
// of a product with the filters.
#include <algorithm>
#include <cstring>
#include <memory>

#include "cpu.h"
#include "linear.h"
#include "ops.h"
#include "tensors.h"

namespace fastspeech {
namespace {

constexpr int64_t GRAIN = 1 << 13;  // values that one thread has laid out sooner than others are woken

#define EACH_SIMD "causal_conv_elu.h"
#include "each_simd.h"

}  // namespace

void causal_conv_cpu(const Tensor& x, const Tensor& state, const Tensor& tiles, const std::optional<Tensor>& bias,
                     const std::optional<Tensor>& residual, int64_t stride, bool elu, const Tensor& out,
                     const Tensor& last) {
  static const auto exponential = BEST_SIMD(elu_of);
  const int64_t batch = x.size(0), frames = x.size(1), channels = x.size(2), past = state.size(1);
  const int64_t old = past * channels, fresh = frames * channels, all = old + fresh;
  const std::unique_ptr<float[]> seen(new float[batch * all]);
  const float *from = x.const_data_ptr<float>(), *before = state.const_data_ptr<float>();
  for (int64_t row = 0; row < batch; ++row) std::copy_n(before + row * old, old, seen.get() + row * all);
  // A row's values in runs, that few streams keep all threads busy.
  const int64_t run = std::min(GRAIN, fresh), runs = (fresh + run - 1) / run;
  torch::stable::parallel_for(0, batch * runs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t row = item / runs, first = item % runs * run, count = std::min(run, fresh - first);
      const float* source = from + row * fresh + first;
      float* target = seen.get() + row * all + old + first;
      elu ? exponential(source, count, target) : static_cast<void>(std::copy_n(source, count, target));
    }
  });
  float* keep = last.mutable_data_ptr<float>();
  for (int64_t row = 0; row < batch; ++row) std::copy_n(seen.get() + row * all + fresh, old, keep + row * old);
  const int64_t made = frames / stride;
  multiply({seen.get(), tiles.const_data_ptr<float>(), data_of<float>(bias), data_of<float>(residual),
            out.mutable_data_ptr<float>(), batch * made, tiles.size(1), out.size(2), made, stride * channels, all});
}

}  // namespace fastspeech
