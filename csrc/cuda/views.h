// Turns torch tensors into the plain views that the kernels take.
#pragma once

#include <ATen/core/Tensor.h>

#include "device.h"
#include "types.h"

namespace cora::gpu {

inline Dtype dtype_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kBFloat16: return Dtype::kBFloat16;
    case at::kHalf: return Dtype::kHalf;
    default: TORCH_CHECK(false, "expected a bfloat16 or float16 tensor, got ", t.scalar_type());
  }
}

inline int int_of(const char* name, int64_t size) {
  TORCH_CHECK(size <= INT32_MAX, name, " must be less than 2^31, got ", size);
  return int(size);
}

inline bool is_aligned(const at::Tensor& t) {
  return reinterpret_cast<uintptr_t>(data_of(t)) % 16 == 0 && t.stride(0) % 8 == 0 && t.stride(1) == 1;
}

// 16-byte aligned rows. Those of x and the weights are (cora_kernels/backends/cuda.py sees to it): what is copied is a gradient,
// whose layout nobody chose, or, in compiled code, a view that starts off the alignment.
inline at::Tensor aligned_rows(const at::Tensor& t) {
  if (is_aligned(t)) return t;
  return t.clone(at::MemoryFormat::Contiguous);
}

inline Matrix matrix_of(const at::Tensor& t) { return {data_of(t), t.stride(0)}; }

// t [..., p, q]: the kernels walk q in chunks, or p if `transposed`.
inline Factor factor_of(const char* name, const at::Tensor& t, at::ScalarType dtype, bool transposed) {
  const bool is_fp32 = t.scalar_type() == at::kFloat;
  TORCH_CHECK(is_fp32 || t.scalar_type() == dtype, name, " must be float32 or ", dtype, ", got ", t.scalar_type());
  const int64_t sample = t.dim() == 3 ? t.stride(0) : 0, outer = t.stride(transposed ? -1 : -2);
  const int64_t inner = t.stride(transposed ? -2 : -1), unit = is_fp32 ? 4 : 8;
  const bool sixteen_bytes = inner == 1 && outer % unit == 0 && sample % unit == 0 &&
                             t.size(transposed ? -2 : -1) % 8 == 0 && reinterpret_cast<uintptr_t>(data_of(t)) % 16 == 0;
  return {data_of(t), sample, outer, inner, is_fp32, sixteen_bytes};
}

}  // namespace cora::gpu
