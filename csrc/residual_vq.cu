// residual_vq on CUDA: all levels in one cooperative launch.
//
// A block keeps the residuals of up to a tile of vectors in shared memory and compares them with its share of a level's
// entries; the blocks' nearest meet in one atomic minimum a vector (residual_vq.h: the first of equals), and after a
// grid-wide barrier each block takes the chosen entries off its own copy of the residuals. For Mimi, 32 levels of 2048
// entries of 256 values, 67 MB, at 4.3 TB/s:
//
//   one block a vector      each reads 67 MB through one SM, 0.1 TB/s: 670 us at 1 vector, and 64 times the traffic at 64
//   one cluster a vector    of 16 SMs: 42 us and 32 cluster barriers at 1 vector; 4.3 GB through the L2 at 64; no sm_80
//   the grid over entries   16 us and 32 grid barriers of about 2 us, at 1 vector as at 64, where the arithmetic of
//                           1.07 G products takes about the same 16 us at 67 T/s
//
// so the barriers are the time. The first entries of the next level are asked into the L2 before each.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda.h"

namespace fastspeech {
namespace {

constexpr int WARPS = 4;
constexpr int ENTRIES = 4;           // of a warp at a time
constexpr int SPAN = 128;            // values that a warp reads at once, four a lane
constexpr int SHARED = 96 << 10;     // bytes of residuals, on every GPU from sm_80 on
constexpr unsigned ALL = 0xffffffffu;

constexpr int GROUPS = 16;           // as many as the room lets through

struct Splits {
  int levels[GROUPS];
  int count;
};

// Four values of an entry, zeros behind its end; `whole` where entries are made of aligned fours.
__device__ __forceinline__ float4 load(const float* from, int64_t at, int64_t dim, bool whole) {
  if (whole) return at < dim ? __ldg(reinterpret_cast<const float4*>(from + at)) : float4{};
  return {at < dim ? from[at] : 0.f, at + 1 < dim ? from[at + 1] : 0.f, at + 2 < dim ? from[at + 2] : 0.f,
          at + 3 < dim ? from[at + 3] : 0.f};
}

__device__ __forceinline__ void prefetch(const float* line) {
#ifdef __CUDA_ARCH__
  asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
#endif
}

__device__ __forceinline__ float dot(float4 a, float4 b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// The sums over the warp's lanes of ROWS values a lane: sum r at every lane whose number modulo ROWS is r. The halving
// steps leave half of the values, as a lane gives away those that its partner keeps. The order of additions is the same
// for any ROWS, so that a vector's codes do not depend on how many there are.
template <int ROWS, int STEP = 16>
__device__ __forceinline__ float sums_of(float (&values)[ROWS], int lane) {
  if constexpr (STEP >= ROWS) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) values[r] += __shfl_xor_sync(ALL, values[r], STEP);
  } else {
    const bool upper = lane & STEP;
#pragma unroll
    for (int r = 0; r < STEP; ++r) {
      const float given = upper ? values[r] : values[r + STEP];
      const float kept = upper ? values[r + STEP] : values[r];
      values[r] = kept + __shfl_xor_sync(ALL, given, STEP);
    }
  }
  if constexpr (STEP > 1) return sums_of<ROWS, STEP / 2>(values, lane);
  return values[0];
}

// The nearest of this warp's entries to ROWS residuals (padded, shared): that of residual r at lanes that are r modulo
// ROWS.
template <int ROWS>
__device__ uint64_t nearest(const float* residuals, int64_t padded, const Codebooks& codebooks, bool whole,
                            int64_t level, int warp, int lane) {
  uint64_t best = UINT64_MAX;
  const int64_t step = static_cast<int64_t>(gridDim.x) * WARPS * ENTRIES;
  for (int64_t first = (static_cast<int64_t>(blockIdx.x) * WARPS + warp) * ENTRIES; first < codebooks.entries;
       first += step) {
    float sums[ENTRIES][ROWS] = {}, squares[ENTRIES] = {};
    for (int64_t at = 4 * lane; at < padded; at += SPAN) {
      float4 entry[ENTRIES];
#pragma unroll
      for (int e = 0; e < ENTRIES; ++e) {
        entry[e] = load(codebooks.entry(level, min(first + e, codebooks.entries - 1)), at, codebooks.dim, whole);
        squares[e] = dot(entry[e], entry[e], squares[e]);
      }
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        const float4 residual = *reinterpret_cast<const float4*>(residuals + r * padded + at);
#pragma unroll
        for (int e = 0; e < ENTRIES; ++e) sums[e][r] = dot(residual, entry[e], sums[e][r]);
      }
    }
#pragma unroll
    for (int e = 0; e < ENTRIES; ++e) {
      float square[1] = {squares[e]};
      const float apart = distance(sums_of<1>(square, lane), sums_of<ROWS>(sums[e], lane));
      if (first + e < codebooks.entries) best = min(best, choice(apart, static_cast<uint32_t>(first + e)));
    }
  }
  return best;
}

// choices: (levels, vectors), all bits set; `tile` vectors fit into shared memory, a multiple of ROWS.
template <int ROWS>
__global__ void __launch_bounds__(32 * WARPS)
    quantise(const float* latents, const Codebooks codebooks, bool whole, const __grid_constant__ Splits splits, int64_t vectors, int tile,
             unsigned long long* choices, int64_t* codes) {
  extern __shared__ float4 shared[];
  float* residuals = reinterpret_cast<float*>(shared);
  static __shared__ unsigned long long bests[WARPS][ROWS];
  const cooperative_groups::grid_group grid = cooperative_groups::this_grid();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t dim = codebooks.dim, padded = (dim + SPAN - 1) / SPAN * SPAN;

  for (int64_t begin = 0; begin < vectors; begin += tile) {
    const int rows = static_cast<int>(min(static_cast<int64_t>(tile), vectors - begin));
    int64_t level = 0;
    for (int group = 0; group < splits.count; ++group) {
      __syncthreads();
      for (int64_t i = threadIdx.x; i < tile * padded; i += blockDim.x) {
        const int64_t row = i / padded, d = i % padded;
        residuals[i] = row < rows && d < dim ? latents[(group * vectors + begin + row) * dim + d] : 0.f;
      }
      for (const int64_t last = level + splits.levels[group]; level < last; ++level) {
        unsigned long long* choices_here = choices + level * vectors + begin;
        for (int row = 0; row < rows; row += ROWS) {
          __syncthreads();
          const uint64_t best = nearest<ROWS>(residuals + row * padded, padded, codebooks, whole, level, warp, lane);
          if (lane < ROWS) bests[warp][lane] = best;
          __syncthreads();
          if (threadIdx.x < ROWS && row + threadIdx.x < rows) {
            unsigned long long first = bests[0][threadIdx.x];
            for (int w = 1; w < WARPS; ++w) first = min(first, bests[w][threadIdx.x]);
            atomicMin(choices_here + row + threadIdx.x, first);
          }
        }
        if (level + 1 < codebooks.levels) {
          const int64_t own = static_cast<int64_t>(blockIdx.x) * WARPS * ENTRIES;
          const int64_t end = min(own + WARPS * ENTRIES, codebooks.entries) * dim;
          for (int64_t at = own * dim + 32 * threadIdx.x; at < end; at += 32 * blockDim.x)
            prefetch(codebooks.entry(level + 1, 0) + at);
        }
        grid.sync();
        for (int row = warp; row < rows; row += WARPS) {
          // From the L2: other vectors' choices of the same line may lie in this SM's own cache since a level ago.
          const int64_t entry = chosen(__ldcg(choices_here + row));
          if (blockIdx.x == 0 && lane == 0) codes[(begin + row) * codebooks.levels + level] = entry;
          const float* values = codebooks.entry(level, entry);
          for (int64_t d = lane; d < dim; d += 32) residuals[row * padded + d] -= values[d];
        }
      }
    }
  }
}

template <int ROWS>
cudaError_t launch(const float* latents, const Codebooks& codebooks, const Splits& splits, int64_t vectors,
                   unsigned long long* choices, int64_t* codes, cudaStream_t stream) {
  const int64_t bytes = (codebooks.dim + SPAN - 1) / SPAN * SPAN * sizeof(float);
  const int64_t fitting = std::min<int64_t>(SHARED / bytes, vectors + ROWS - 1) / ROWS * ROWS;
  int tile = static_cast<int>(std::max<int64_t>(fitting, ROWS));
  const size_t shared = tile * bytes;
  const auto kernel = quantise<ROWS>;
  int device = 0, processors = 0, resident = 0;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (!error) error = cudaGetDevice(&device);
  if (!error) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (!error) error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, 32 * WARPS, shared);
  if (error) return error;
  // A block for each of its warps' groups of entries, as many as are resident at once: they wait for each other.
  const int64_t blocks = (codebooks.entries + WARPS * ENTRIES - 1) / (WARPS * ENTRIES);
  const int grid = static_cast<int>(std::min<int64_t>(blocks, static_cast<int64_t>(resident) * processors));
  Codebooks books = codebooks;
  bool whole = codebooks.dim % 4 == 0 && reinterpret_cast<uintptr_t>(codebooks.values) % sizeof(float4) == 0;
  Splits parts = splits;
  void* args[] = {&latents, &books, &whole, &parts, &vectors, &tile, &choices, &codes};
  return cudaLaunchCooperativeKernel(kernel, grid, 32 * WARPS, args, shared, stream);
}

}  // namespace

int residual_vq_launch(const float* latents, const Codebooks& codebooks, const int64_t* splits, int groups,
                       int64_t vectors, int64_t* choices, int64_t* codes, void* stream) {
  Splits parts{};
  parts.count = groups;
  for (int g = 0; g < groups; ++g) parts.levels[g] = static_cast<int>(splits[g]);
  const auto on = static_cast<cudaStream_t>(stream);
  const auto room = reinterpret_cast<unsigned long long*>(choices);
  if (const cudaError_t error = cudaMemsetAsync(choices, 0xff, codebooks.levels * vectors * sizeof(int64_t), on))
    return error;
  // Sums of rows that are not there cost as much as those of rows that are.
  if (vectors <= 2) return launch<2>(latents, codebooks, parts, vectors, room, codes, on);
  if (vectors <= 8) return launch<8>(latents, codebooks, parts, vectors, room, codes, on);
  return launch<32>(latents, codebooks, parts, vectors, room, codes, on);
}

const char* cuda_message(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace fastspeech
