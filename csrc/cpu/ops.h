// The ops of the CPU backend, as they are registered with torch (bindings.cpp has the schemas).
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

namespace cora::cpu {

using OptionalTensor = std::optional<at::Tensor>;
using Tensors = std::vector<at::Tensor>;

at::Tensor shrink(const at::Tensor& x, const at::Tensor& a, const OptionalTensor& scales, double scaling,
                  const OptionalTensor& cu_seqlens, int64_t batch);

// The ys, then the computed ss (none where s is given).
Tensors forward(const at::Tensor& x, at::TensorList weights, at::TensorList lora_as, at::TensorList lora_bs,
                const c10::List<OptionalTensor>& biases, const OptionalTensor& scales, double scaling,
                const OptionalTensor& cu_seqlens, int64_t batch, at::TensorList given);

// dx (if weights and lora_as are given), then the n_a computed dss (none where ds is given).
Tensors backward_input(at::TensorList gs, at::TensorList weights, at::TensorList lora_as, at::TensorList lora_bs,
                       const OptionalTensor& scales, double scaling, const OptionalTensor& cu_seqlens, int64_t batch,
                       int64_t n_a, at::TensorList given);

// x·weightᵀ + bias, or transposed, x·weight.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias, bool transposed);

at::Tensor outer(const at::Tensor& u, const at::Tensor& v, const OptionalTensor& cu_seqlens, int64_t batch,
                 bool per_sample, at::ScalarType dtype);

// out, and of each row of scores the largest and one over the sum of exponentials, fp32 [2, heads, M].
std::tuple<at::Tensor, at::Tensor> attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                             const at::Tensor& cu_seqlens, const OptionalTensor& parents, double scale);

// dq, dk, dv.
std::tuple<at::Tensor, at::Tensor, at::Tensor> attention_backward(const at::Tensor& g, const at::Tensor& q,
                                                                  const at::Tensor& k, const at::Tensor& v,
                                                                  const at::Tensor& sums, const at::Tensor& cu_seqlens,
                                                                  const OptionalTensor& parents, double scale);

}  // namespace cora::cpu
