// residual_vq on the CPU.
//
// A level is one pass over its codebook, divided among the threads: a group of entries is read once and stays in the
// first-level cache while every vector's residual goes past it. Sums run along the dimension in the lanes of vector
// registers, in an order that depends on neither the entry nor the number of vectors: equal entries are exactly
// equally near, and a vector's codes do not depend on its batch.
#include "residual_vq.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "cpu.h"
#include "ops.h"
#include "tensors.h"

namespace fastspeech {
namespace {

constexpr int ENTRIES = 4;      // of a group, as many as simd.h sums at a time
constexpr int64_t BLOCK = 16;   // vectors
constexpr int64_t CHUNK = 128;  // entries

// The nearest entry so far of a vector.
struct Best {
  float distance;
  uint32_t entry;
};

// Entries that are read together. The last group of a range is filled up with its last entry, whose repetitions are
// never nearer than itself.
struct Group {
  const float* entries[ENTRIES];
  int64_t first;

  Group(const Codebooks& codebooks, int64_t level, int64_t first, int64_t end) : first(first) {
    for (int64_t e = 0; e < ENTRIES; ++e) entries[e] = codebooks.entry(level, std::min(first + e, end - 1));
  }
};

#define EACH_SIMD "residual_vq_nearest.h"
#include "each_simd.h"

}  // namespace

void residual_vq_cpu(const Tensor& latents, const Tensor& codebooks, const std::vector<int64_t>& splits,
                     const Tensor& codes, const std::optional<Tensor>&) {
  static const auto nearest = BEST_SIMD(nearest);
  const Codebooks books = codebooks_of(codebooks);
  const int64_t vectors = latents.size(1), size = vectors * books.dim;
  const float* latent = latents.const_data_ptr<float>();
  int64_t* code = codes.mutable_data_ptr<int64_t>();

  const int64_t threads = torch::stable::get_num_threads();
  std::vector<Best> best(threads * vectors);
  // Less than this is done sooner by one thread than others are woken.
  const int64_t grain = std::max<int64_t>(ENTRIES, (1 << 17) / std::max<int64_t>(size, 1));
  std::vector<float> residuals;
  int64_t level = 0;
  for (const int64_t levels : splits) {
    residuals.assign(latent, latent + size);
    latent += size;
    for (const int64_t last = level + levels; level < last; ++level) {
      std::fill(best.begin(), best.end(), Best{std::numeric_limits<float>::infinity(), 0});
      torch::stable::parallel_for(0, books.entries, grain, [&](int64_t begin, int64_t end) {
        nearest(residuals.data(), vectors, books, level, begin, end, best.data() + thread_index() * vectors);
      });
      for (int64_t vector = 0; vector < vectors; ++vector) {
        uint64_t first = UINT64_MAX;
        for (int64_t at = vector; at < threads * vectors; at += vectors)
          first = std::min(first, choice(best[at].distance, best[at].entry));
        code[vector * books.levels + level] = chosen(first);
        const float* entry = books.entry(level, chosen(first));
        float* residual = residuals.data() + vector * books.dim;
        for (int64_t d = 0; d < books.dim; ++d) residual[d] -= entry[d];
      }
    }
  }
}

}  // namespace fastspeech
