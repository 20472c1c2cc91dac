// y = x·W + S·B + bias in one launch, S = s·x·A computed in the same K loop or given. The same kernel gives dx.
#pragma once

#include <cuda_runtime_api.h>

#include "types.h"

namespace cora::gpu {

// The largest rank that one pass serves: beyond it S costs more in every column tile than a second read of x.
constexpr int kOnePassRank = 32;

// x [rows x depth], y [rows x cols] contiguous; depth and cols are multiples of 8.
// Forward: w [cols x depth], a: outer along depth, inner along rank, b: outer along rank, inner along cols.
// Backward (dx): w [depth x cols], a (Bᵀ): outer along rank, inner along depth, b (Aᵀ): outer along cols, inner along
// rank.
struct LowRankGemm {
  Matrix x;
  Matrix w;
  // Without data, s [rows x rank] is given and only read; it is 16-byte aligned.
  Factor a;
  Factor b;
  // [cols] in the dtype of y, or null.
  const void* bias;
  float* s;
  void* y;
  Scaling scaling;
  // Tiles end at the boundaries of these (one pass), or b changes there (S given).
  Segments segments;
  int cols;
  int depth;
  int rank;
  bool backward;
  // Adds to y.
  bool accumulate;
};

cudaError_t run(const LowRankGemm& gemm, Dtype dtype, int multiprocessors, cudaStream_t stream);

}  // namespace cora::gpu
