// Takes the place of csrc/cuda/device.h: the ops run on CPU tensors, and note where each
// tensor lies, for the simulator that executes their launches.
#pragma once

#include <ATen/core/Tensor.h>
#include <cuda_runtime_api.h>

namespace cora::gpu {

class Device {
 public:
  explicit Device(const at::Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
  int multiprocessors() const;
};

void note(const void* first, int64_t bytes);

inline void* data_of(const at::Tensor& t) {
  int64_t last = 0;
  for (int64_t i = 0; i < t.dim(); ++i)
    last += (t.size(i) - 1) * t.stride(i);
  if (t.numel()) note(t.data_ptr(), (last + 1) * t.element_size());
  return t.data_ptr();
}

inline void check(cudaError_t launched) { TORCH_CHECK(launched == cudaSuccess); }

}  // namespace cora::gpu
