// S = s·x·A, fp32. In the backward dS = s·g·Bᵀ.
#pragma once

#include <cuda_runtime_api.h>

#include "types.h"

namespace cora::gpu {

// x [rows x depth], s [rows x rank] contiguous; depth is a multiple of 8.
struct Shrink {
  Matrix x;
  // Outer along depth and inner along rank, or the other way round if inner_is_depth.
  Factor a;
  float* s;
  Scaling scaling;
  Segments segments;
  int depth;
  int rank;
  bool inner_is_depth;
  // Adds to s.
  bool accumulate;
};

cudaError_t run(const Shrink& shrink, Dtype dtype, int multiprocessors, cudaStream_t stream);

}  // namespace cora::gpu
