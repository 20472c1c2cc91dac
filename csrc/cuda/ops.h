// The ops on CUDA tensors; their meaning is that of the CPU ops of the same names.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

namespace cora::gpu {

using OptionalTensor = std::optional<at::Tensor>;

at::Tensor shrink(const at::Tensor& x, const at::Tensor& a, const OptionalTensor& scales, double scaling,
                  const OptionalTensor& cu_seqlens, int64_t batch);

// `strategies`: "one_pass", "two_kernels", "separate" or "decode" for each weight, as cora_kernels/planning/choose.py decides. What
// its kernels cannot run is an error.
std::vector<at::Tensor> forward(const at::Tensor& x, at::TensorList weights, at::TensorList lora_as,
                                at::TensorList lora_bs, const c10::List<OptionalTensor>& biases,
                                const OptionalTensor& scales, double scaling, const OptionalTensor& cu_seqlens,
                                int64_t batch, at::TensorList given,
                                const c10::List<std::string>& strategies);

// `strategies`: one for each A where dx is wanted, else none.
std::vector<at::Tensor> backward_input(at::TensorList gs, at::TensorList weights, at::TensorList lora_as,
                                       at::TensorList lora_bs, const OptionalTensor& scales, double scaling,
                                       const OptionalTensor& cu_seqlens, int64_t batch, int64_t n_a,
                                       at::TensorList given, const c10::List<std::string>& strategies);

at::Tensor outer(const at::Tensor& u, const at::Tensor& v, const OptionalTensor& cu_seqlens, int64_t batch,
                 bool per_sample, at::ScalarType dtype);

}  // namespace cora::gpu
