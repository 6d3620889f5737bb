// As much of CUDA as csrc/*.cu uses, for a C++ compiler: a block is a thread of the system, its threads are contexts that
// take turns wherever they wait for each other. What this cannot show: races (a thread runs until it waits), memory
// spaces, and how fast anything is.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ __thread

struct alignas(16) float4 {
  float x, y, z, w;
};

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x) : x(x) {}
};

namespace cuda_on_cpu {

constexpr int MULTIPROCESSORS = 3;
constexpr size_t STACK = 1 << 16;

struct Context {
  ucontext_t start;
  jmp_buf at;
  std::unique_ptr<char[]> stack{new char[STACK]};
  bool started = false, done = false;
};

struct Barrier {
  unsigned count, arrived = 0, generation = 0;
  void wait();
};

struct Block {
  unsigned index, blocks, running = 0;
  std::vector<Context> threads;
  std::vector<Barrier> warps;
  Barrier all;
  std::vector<uint64_t> exchanged;
  std::barrier<>* grid;
  ucontext_t home;

  void yield() {
    const unsigned before = running;
    do running = (running + 1) % threads.size();
    while (threads[running].done && running != before);
    if (running == before || _setjmp(threads[before].at)) return;
    resume();
  }

  // A jump, once a thread runs: contexts save the signal mask too, which takes a system call.
  void resume() {
    Context& thread = threads[running];
    if (thread.started) _longjmp(thread.at, 1);
    thread.started = true;
    setcontext(&thread.start);
  }
};

inline thread_local Block* block = nullptr;

inline void Barrier::wait() {
  const unsigned now = generation;
  if (++arrived == count) {
    arrived = 0;
    ++generation;
  } else {
    while (now == generation) block->yield();
  }
}

template <class T>
T exchange(T value, unsigned with) {
  Barrier& warp = block->warps[block->running / 32];
  static_assert(sizeof(T) <= sizeof(uint64_t));
  std::memcpy(&block->exchanged[block->running], &value, sizeof value);
  warp.wait();
  std::memcpy(&value, &block->exchanged[block->running / 32 * 32 + with], sizeof value);
  warp.wait();
  return value;
}

inline thread_local void (*entry)(void*);
inline thread_local void* argument;

inline void run_thread() {
  entry(argument);
  block->threads[block->running].done = true;
  for (const Context& thread : block->threads)
    if (!thread.done) block->yield();
  setcontext(&block->home);
}

inline void run_block(unsigned index, unsigned blocks, unsigned threads, std::barrier<>* grid, void (*call)(void*),
                      void* with) {
  Block here{index, blocks, 0, std::vector<Context>(threads), {}, {threads}, std::vector<uint64_t>(threads), grid, {}};
  here.warps.assign((threads + 31) / 32, Barrier{32});
  block = &here;
  entry = call;
  argument = with;
  for (Context& thread : here.threads) {
    getcontext(&thread.start);
    thread.start.uc_stack.ss_sp = thread.stack.get();
    thread.start.uc_stack.ss_size = STACK;
    makecontext(&thread.start, run_thread, 0);
  }
  volatile bool over = false;
  getcontext(&here.home);
  if (over) return;
  over = true;
  here.resume();
}

template <class... Parameters, size_t... At>
void launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, void** args, bool together,
            std::index_sequence<At...>) {
  const auto call = [&] { kernel(*static_cast<std::remove_cv_t<Parameters>*>(args[At])...); };
  const auto invoke = [](void* what) { (*static_cast<const decltype(call)*>(what))(); };
  std::barrier<> grid(blocks);
  std::vector<std::jthread> running;
  for (unsigned index = 0; index < blocks; ++index) {
    running.emplace_back([&, index] { run_block(index, blocks, threads, &grid, invoke, const_cast<void*>(static_cast<const void*>(&call))); });
    if (!together) running.back().join();
  }
}

}  // namespace cuda_on_cpu

struct Index {
  unsigned x;
};
#define threadIdx (Index{cuda_on_cpu::block->running})
#define blockIdx (Index{cuda_on_cpu::block->index})
#define gridDim (Index{cuda_on_cpu::block->blocks})
#define blockDim (Index{static_cast<unsigned>(cuda_on_cpu::block->threads.size())})

inline void __syncthreads() { cuda_on_cpu::block->all.wait(); }

template <class T>
T __shfl_xor_sync(unsigned, T value, unsigned lanes) {
  return cuda_on_cpu::exchange(value, cuda_on_cpu::block->running % 32 ^ lanes);
}

template <class T>
T __ldg(const T* from) {
  return *from;
}

template <class T>
T __ldcg(const T* from) {
  return __atomic_load_n(from, __ATOMIC_SEQ_CST);
}

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}

inline unsigned long long atomicMin(unsigned long long* at, unsigned long long value) {
  unsigned long long before = __atomic_load_n(at, __ATOMIC_SEQ_CST);
  while (value < before && !__atomic_compare_exchange_n(at, &before, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
  }
  return before;
}

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaDevAttrMultiProcessorCount };
using cudaStream_t = void*;

template <class T>
cudaError_t cudaFuncSetAttribute(T*, int, size_t bytes) {
  return bytes > 163 << 10 ? cudaErrorInvalidValue : cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  return *value = cuda_on_cpu::MULTIPROCESSORS, cudaSuccess;
}
template <class T>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, T*, int, size_t) {
  return *blocks = 1, cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  return std::memset(at, value, bytes), cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t error) { return error ? "invalid value" : "no error"; }

template <class... Parameters>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, void** args, size_t, cudaStream_t) {
  cuda_on_cpu::launch(kernel, grid.x, block.x, args, false, std::index_sequence_for<Parameters...>());
  return cudaSuccess;
}

template <class... Parameters>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, void** args, size_t,
                                        cudaStream_t) {
  if (grid.x > cuda_on_cpu::MULTIPROCESSORS) return cudaErrorInvalidValue;
  cuda_on_cpu::launch(kernel, grid.x, block.x, args, true, std::index_sequence_for<Parameters...>());
  return cudaSuccess;
}
