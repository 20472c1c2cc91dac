// The size of a block, and how one is launched.
#pragma once

#include <cuda_runtime_api.h>

namespace cora::gpu {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;

__host__ __device__ constexpr int cdiv(int a, int b) { return (a + b - 1) / b; }

}  // namespace cora::gpu
