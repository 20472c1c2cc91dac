// Turns torch tensors into the plain views that the drivers take.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels.h"

namespace cora::cpu {

// Whether the values of t are the numbers in its memory on the CPU, and nothing but torch itself has a say in what
// happens to it: no sparse or other layout, no negative bit, no zeros without memory, no subclass or function transform.
inline bool is_plain(const at::Tensor& t) {
  // Of a temporary: torch 2.6 has raw_repr() of no constant.
  const uint64_t plain = c10::DispatchKeySet({c10::DispatchKey::CPU, c10::DispatchKey::ADInplaceOrView,
                                              c10::DispatchKey::AutogradCPU, c10::DispatchKey::AutocastCPU})
                             .raw_repr();
  return (t.key_set().raw_repr() & ~plain) == 0;
}

// t, or a copy of it that is plain where t has a negative bit or is zeros without memory.
inline at::Tensor plain(const char* name, const at::Tensor& t) {
  if (is_plain(t)) return t;
  at::Tensor copy = t.is_neg() || t._is_zerotensor() ? t.clone() : t;
  TORCH_CHECK_TYPE(is_plain(copy), name, " must be a plain strided Tensor, got one with ", t.key_set());
  return copy;
}

// The micro-kernels that an op runs on.
inline const Kernels& kernels() {
  const Kernels* kernels = chosen_kernels();
  TORCH_CHECK(kernels, "the CPU kernels need a processor with AVX2, FMA and F16C");
  return *kernels;
}

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
