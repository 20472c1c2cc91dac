// The frozen weights, packed for the micro-kernels: once per weight and direction, kept while the weight lives
// unchanged.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels.h"

namespace cora::cpu {

// weight [N, K], packed for rows of this dtype (and rounded to it) as x·Wᵀ reads it (transposed = false: depth K,
// columns N) or as g·W does (depth N, columns K): panels of 48 columns, [depth][48] each. A kept pack costs its calls a
// look-up.
at::Tensor packed(const at::Tensor& weight, bool transposed, Dtype rows, const Kernels& kernels);

// Whether packs outlive the call that makes them; returns what held before. Switching off frees them.
bool keep_packs(bool keep);
void clear_packs();
int64_t packs_bytes();

}  // namespace cora::cpu
