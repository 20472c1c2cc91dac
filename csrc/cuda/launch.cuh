// The size of a block, and how one is launched.
#pragma once

#include <cuda_runtime.h>

namespace cora::gpu {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;

__host__ __device__ constexpr int cdiv(int a, int b) { return (a + b - 1) / b; }

// Launches a kernel with this much dynamic shared memory; more than 48 KiB have to be allowed first.
template <typename Parameters>
cudaError_t launch_kernel(void (*kernel)(Parameters), dim3 grid, int shared, const Parameters& p, cudaStream_t stream) {
  constexpr int kWithoutAsking = 48 * 1024;
  if (shared > kWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != cudaSuccess) return error;
  }
  kernel<<<grid, kThreads, shared, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace cora::gpu
