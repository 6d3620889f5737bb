// The CPU side of the ops as PyTorch calls it: every argument given, every result written where the caller made room.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace fastspeech {

using torch::stable::Tensor;

// latents (groups, vectors, dim) and codebooks (levels, entries, dim) float32, codes (vectors, levels) int64, all dense.
// choices is room that only the CUDA side needs.
void residual_vq_cpu(const Tensor& latents, const Tensor& codebooks, const std::vector<int64_t>& splits,
                     const Tensor& codes, const std::optional<Tensor>& choices);

// table int32, positions and counts int64, inv_freq and scales float32, these dense.
void page_append_cpu(const Tensor& keys, const Tensor& values, const Tensor& key_pages, const Tensor& value_pages,
                     const std::optional<Tensor>& table, const Tensor& positions, const std::optional<Tensor>& counts,
                     const std::optional<Tensor>& inv_freq, bool interleaved, const std::optional<Tensor>& key_scales,
                     const std::optional<Tensor>& value_scales);

void page_fork_cpu(const Tensor& key_pages, const Tensor& value_pages, const Tensor& sources, const Tensor& targets);

// out (rows, tokens, heads, dims), dense like table, positions and scales; inv_freq and scales float32.
void paged_attention_cpu(const Tensor& q, const Tensor& key_pages, const Tensor& value_pages,
                         const std::optional<Tensor>& table, const Tensor& positions,
                         const std::optional<Tensor>& inv_freq, bool interleaved, bool causal, int64_t window,
                         double scale, const std::optional<Tensor>& key_scales,
                         const std::optional<Tensor>& value_scales, const Tensor& out);

// x (rows, in), tiles (tiles, in, 32), bias (outputs) and out (rows, outputs) float32, all dense.
void tiled_linear_cpu(const Tensor& x, const Tensor& tiles, const std::optional<Tensor>& bias, const Tensor& out);

// Cosines and sines (batch or 1, tokens, pairs), float32, and lengths, int64, dense; out (batch, queries, heads, dims).
void rope_attention_cpu(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& q_cosines,
                        const std::optional<Tensor>& q_sines, const std::optional<Tensor>& k_cosines,
                        const std::optional<Tensor>& k_sines, const std::optional<Tensor>& lengths, bool causal,
                        int64_t window, bool interleaved, double scale, const Tensor& out);

// weight (channels, taps) and bias (channels) float32, lengths int64; all dense, like x and out.
void conformer_conv_cpu(const Tensor& x, const Tensor& weight, const Tensor& bias, const std::optional<Tensor>& lengths,
                        const Tensor& out);

// x (batch, frames, channels), state and last (batch, past, channels), tiles (tiles, taps * channels, 32), bias (outputs),
// residual and out (batch, frames / stride, outputs) float32, all dense.
void causal_conv_cpu(const Tensor& x, const Tensor& state, const Tensor& tiles, const std::optional<Tensor>& bias,
                     const std::optional<Tensor>& residual, int64_t stride, bool elu, const Tensor& out,
                     const Tensor& last);

// waveform (rows, samples), window, mel (bins, n_fft / 2 + 1) and out (rows, frames, bins) float32, lengths int64, all
// dense; n_fft a power of two.
void log_mel_cpu(const Tensor& waveform, const std::optional<Tensor>& lengths, const Tensor& window, const Tensor& mel,
                 int64_t n_fft, int64_t hop, double preemphasis, bool per_frame, double log_offset, double log_floor,
                 const Tensor& out);

// features and out (rows, frames, features) float32, lengths int64, all dense.
void cmvn_cpu(const Tensor& features, const Tensor& lengths, int64_t ddof, double eps, double variance_floor,
              const Tensor& out);

}  // namespace fastspeech
