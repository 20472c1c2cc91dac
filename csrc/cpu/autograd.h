// The op with its backward in C++, for the calls that `fits` lets through: the same as cora_kernels/autograd.py, which
// serves all others. There, with the caches full of a product's operands, Python takes 0.3 to 0.6 ms a call.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace cora::cpu {

// x [B, T, K], weights [N, K], lora_as (one, or one a weight) and lora_bs as in lora_linear_group; an undefined bias is
// none. Returns the ys [B, T, N].
std::vector<at::Tensor> lora_linear_group(const at::Tensor& x, const std::vector<at::Tensor>& weights,
                                          const std::vector<at::Tensor>& lora_as,
                                          const std::vector<at::Tensor>& lora_bs, const std::vector<at::Tensor>& biases,
                                          double scaling);

}  // namespace cora::cpu
