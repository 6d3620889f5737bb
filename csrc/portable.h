// Code that the host's compiler and nvcc both take, for the CPU and for a GPU.
#pragma once

#ifdef __CUDACC__
#define PORTABLE __host__ __device__
#else
#define PORTABLE
#endif
