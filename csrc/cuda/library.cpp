// Schemas of the ops on CUDA tensors, and which architectures their kernels were built for.
#include <torch/library.h>

#include "ops.h"

TORCH_LIBRARY_FRAGMENT(cora_kernels, m) {
  m.def("cuda_shrink(Tensor x, Tensor a, Tensor? scales, float scaling, Tensor? cu_seqlens, SymInt batch) -> Tensor");
  m.def(
      "cuda_forward(Tensor x, Tensor[] weights, Tensor[] lora_as, Tensor[] lora_bs, Tensor?[] biases, Tensor? scales, "
      "float scaling, Tensor? cu_seqlens, SymInt batch, Tensor[] s, str[] strategies) -> Tensor[]");
  m.def(
      "cuda_backward_input(Tensor[] gs, Tensor[] weights, Tensor[] lora_as, Tensor[] lora_bs, Tensor? scales, "
      "float scaling, Tensor? cu_seqlens, SymInt batch, int n_a, Tensor[] ds, str[] strategies) -> Tensor[]");
  m.def(
      "cuda_outer(Tensor u, Tensor v, Tensor? cu_seqlens, SymInt batch, bool per_sample, ScalarType dtype) -> Tensor");
  m.def("cuda_architectures() -> str", []() -> std::string { return CORA_CUDA_ARCHITECTURES; });
}

TORCH_LIBRARY_IMPL(cora_kernels, CUDA, m) {
  m.impl("cuda_shrink", &cora::gpu::shrink);
  m.impl("cuda_forward", &cora::gpu::forward);
  m.impl("cuda_backward_input", &cora::gpu::backward_input);
  m.impl("cuda_outer", &cora::gpu::outer);
}
