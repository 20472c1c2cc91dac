// What the drivers rely on for memory safety, whoever calls the ops. Device-free. Full argument checks, with the user's
// names for things, are in cora_kernels/functional.py.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace cora {

inline void check_rows(const char* name, const at::Tensor& t, int64_t rows, int64_t cols) {
  TORCH_CHECK(t.dim() == 2 && t.size(0) == rows && t.size(1) == cols, name, " must be [", rows, ", ", cols, "], got ",
              t.sizes());
  TORCH_CHECK(t.stride(1) == 1 || t.size(1) <= 1 || t.size(0) == 0, name, " must have unit column stride, got ",
              t.stride(1));
}

inline void check_matrix(const char* name, const at::Tensor& t, int64_t rows, int64_t cols) {
  TORCH_CHECK(t.dim() == 2 && t.size(0) == rows && t.size(1) == cols, name, " must be [", rows, ", ", cols, "], got ",
              t.sizes());
}

// A factor shared by all samples [rows, cols] or one for each [batch, rows, cols].
inline void check_factor(const char* name, const at::Tensor& t, int64_t batch, int64_t rows, int64_t cols) {
  const bool fits = t.dim() == 2 || (t.dim() == 3 && t.size(0) == batch);
  TORCH_CHECK(fits && t.size(-2) == rows && t.size(-1) == cols, name, " must be [", rows, ", ", cols, "] or [", batch,
              ", ", rows, ", ", cols, "], got ", t.sizes());
}

inline void check_dtype(const char* name, const at::Tensor& t, at::ScalarType dtype) {
  TORCH_CHECK(t.scalar_type() == dtype, name, " must be ", dtype, ", got ", t.scalar_type());
}

// The shape of uᵀ·v, of all rows of u [rows, p] and v [rows, q] or of those of each sample.
inline std::vector<int64_t> outer_shape(const at::Tensor& u, const at::Tensor& v, int64_t batch, bool per_sample) {
  check_rows("u", u, u.size(0), u.size(1));
  check_rows("v", v, u.size(0), v.size(1));
  if (per_sample) return {batch, u.size(1), v.size(1)};
  return {u.size(1), v.size(1)};
}

}  // namespace cora
