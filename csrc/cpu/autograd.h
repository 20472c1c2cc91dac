// lora_linear_group with its backward in C++, for the calls that take the fast path (fast_path.h). It saves and
// computes what cora_kernels/autograd.py does, which serves all others.
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
