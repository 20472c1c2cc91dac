// y = s·(x·A)·B + bias for at most eight rows a sample, in one launch: A and B are all its bytes.
#pragma once

#include <cuda_runtime_api.h>

#include "types.h"

namespace cora::gpu {

constexpr int kDecodeRows = 8;
constexpr int kDecodeRank = 128;

// x [samples·length x depth], y [samples·length x cols] contiguous; depth and cols are multiples of 8.
struct Decode {
  Matrix x;
  // Outer along depth, inner along rank. Without data, s is given and only read.
  Factor a;
  // Outer along rank, inner along cols.
  Factor b;
  // [cols] in the dtype of y, or null.
  const void* bias;
  float* s;
  void* y;
  Scaling scaling;
  int samples;
  int length;
  int cols;
  int depth;
  int rank;
  // Columns of y for one block, a multiple of 8.
  int share;
};

cudaError_t run(Decode decode, Dtype dtype, int multiprocessors, cudaStream_t stream);

}  // namespace cora::gpu
