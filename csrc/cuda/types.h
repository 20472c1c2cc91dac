// Plain views of tensors, as the kernels take them. Needs no torch and no CUDA.
#pragma once

#include <cstdint>

namespace cora::gpu {

// Of the row operands, the weights and the outputs.
enum class Dtype { kBFloat16, kHalf };

// The rows of a batch, cut into `count` samples: sample i has the rows offsets[i]:offsets[i + 1], or `length` each
// where offsets are null.
struct Segments {
  const int32_t* offsets;
  int rows;
  int count;
  int length;
};

// A row operand or weight in 16 bits: unit column stride, 16-byte aligned rows.
struct Matrix {
  const void* data;
  int64_t stride;
};

// A low-rank factor of any strides (in elements), in fp32 or in the dtype of the rows; sample_stride 0 if it is shared.
// Kernels read it in chunks along `inner`, of sixteen bytes where strides, size and address allow it.
struct Factor {
  const void* data;
  int64_t sample_stride;
  int64_t outer_stride;
  int64_t inner_stride;
  bool is_fp32;
  bool sixteen_bytes;
};

// A number for all samples; or (not null) one in memory for each, `stride` apart, or, with a stride of 0, for all.
struct Scaling {
  const float* values;
  int stride;
  float number;

  bool is_per_sample() const { return values && stride; }
};

}  // namespace cora::gpu
