// What the drivers ask torch and the CUDA runtime: where to launch, where the data lie, how a launch went.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

namespace cora::gpu {

// Makes the tensor's device the current one for as long as it lives.
class Device {
 public:
  explicit Device(const at::Tensor& t) : guard_(t.device()) {}
  cudaStream_t stream() const { return c10::cuda::getCurrentCUDAStream(); }
  int multiprocessors() const {
    int count = 0;
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, guard_.current_device().index()));
    return count;
  }

 private:
  c10::cuda::CUDAGuard guard_;
};

inline void* data_of(const at::Tensor& t) { return t.data_ptr(); }

inline void check(cudaError_t launched) { C10_CUDA_CHECK(launched); }

}  // namespace cora::gpu
