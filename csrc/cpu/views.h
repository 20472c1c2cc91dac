// Turns torch tensors into the plain views that the drivers take.
#pragma once

#include <ATen/core/Tensor.h>

#include "types.h"

namespace cora::cpu {

inline Dtype dtype_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat: return Dtype::kFloat;
    case at::kBFloat16: return Dtype::kBFloat16;
    case at::kHalf: return Dtype::kHalf;
    default: TORCH_CHECK(false, "expected a float32, bfloat16 or float16 tensor, got ", t.scalar_type());
  }
}

// [p, q], or [B, p, q] with a factor for each sample.
inline Matrix matrix_of(const at::Tensor& t) {
  return {t.const_data_ptr(), dtype_of(t), t.stride(-2), t.stride(-1), t.dim() == 3 ? t.stride(0) : 0};
}

}  // namespace cora::cpu
