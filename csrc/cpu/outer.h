// out [D x q] or its transpose [q x D] = Σ over the rows of a sample (or all rows) of wideᵀ · narrow.
#pragma once

#include "kernels.h"

namespace cora::cpu {

struct Outer {
  Segments segments;
  bool per_sample;
  // [M x wide_cols], unit column stride.
  const void* wide;
  Dtype wide_dtype;
  int64_t wide_stride;
  int64_t wide_cols;
  // fp32 [M x narrow_cols].
  const float* narrow;
  int64_t narrow_stride;
  int64_t narrow_cols;
  // Contiguous, one for each sample if per_sample; its rows are the columns of wide if wide_first.
  void* out;
  Dtype out_dtype;
  bool wide_first;
};

void run(const Outer& outer, const Kernels& kernels);

}  // namespace cora::cpu
