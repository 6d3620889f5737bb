// Registration of the ops and of their CPU side with PyTorch, on its stable ABI.
#include "ops.h"

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastspeech_csrc, library) {
  library.def(
      "residual_vq(Tensor latents, Tensor codebooks, int[] splits, Tensor(a!) codes, Tensor(b!)? choices) -> ()");
  library.def(
      "page_append(Tensor keys, Tensor values, Tensor(a!) key_pages, Tensor(b!) value_pages, Tensor? table, "
      "Tensor positions, Tensor? counts, Tensor? inv_freq, bool interleaved, Tensor? key_scales, Tensor? value_scales) "
      "-> ()");
  library.def("page_fork(Tensor(a!) key_pages, Tensor(b!) value_pages, Tensor sources, Tensor targets) -> ()");
  library.def(
      "paged_attention(Tensor q, Tensor key_pages, Tensor value_pages, Tensor? table, Tensor positions, "
      "Tensor? inv_freq, bool interleaved, bool causal, int window, float scale, "
      "Tensor? key_scales, Tensor? value_scales, Tensor(a!) out) -> ()");
  library.def("tiled_linear(Tensor x, Tensor tiles, Tensor? bias, Tensor(a!) out) -> ()");
  library.def(
      "rope_attention(Tensor q, Tensor k, Tensor v, Tensor? q_cosines, Tensor? q_sines, Tensor? k_cosines, "
      "Tensor? k_sines, Tensor? lengths, bool causal, int window, bool interleaved, float scale, Tensor(a!) out) -> ()");
  library.def(
      "causal_conv(Tensor x, Tensor state, Tensor tiles, Tensor? bias, Tensor? residual, int stride, bool elu, "
      "Tensor(a!) out, Tensor(b!) last) -> ()");
  library.def("conformer_conv(Tensor x, Tensor weight, Tensor bias, Tensor? lengths, Tensor(a!) out) -> ()");
  library.def(
      "log_mel(Tensor waveform, Tensor? lengths, Tensor window, Tensor mel, int n_fft, int hop, float preemphasis, "
      "bool per_frame, float log_offset, float log_floor, Tensor(a!) out) -> ()");
  library.def(
      "cmvn(Tensor features, Tensor lengths, int ddof, float eps, float variance_floor, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastspeech_csrc, CPU, library) {
  library.impl("residual_vq", TORCH_BOX(&fastspeech::residual_vq_cpu));
  library.impl("page_append", TORCH_BOX(&fastspeech::page_append_cpu));
  library.impl("page_fork", TORCH_BOX(&fastspeech::page_fork_cpu));
  library.impl("paged_attention", TORCH_BOX(&fastspeech::paged_attention_cpu));
  library.impl("tiled_linear", TORCH_BOX(&fastspeech::tiled_linear_cpu));
  library.impl("rope_attention", TORCH_BOX(&fastspeech::rope_attention_cpu));
  library.impl("causal_conv", TORCH_BOX(&fastspeech::causal_conv_cpu));
  library.impl("conformer_conv", TORCH_BOX(&fastspeech::conformer_conv_cpu));
  library.impl("log_mel", TORCH_BOX(&fastspeech::log_mel_cpu));
  library.impl("cmvn", TORCH_BOX(&fastspeech::cmvn_cpu));
}
