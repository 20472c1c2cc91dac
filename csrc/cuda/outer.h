// out = wideᵀ·narrow over the rows of each sample, or of all: dA = xᵀ·dS, dBᵀ = gᵀ·S. No atomics.
#pragma once

#include <cuda_runtime_api.h>

#include "types.h"

namespace cora::gpu {

// wide [rows x cols], cols a multiple of 8; narrow [rows x rank], outer along rows.
struct Outer {
  Matrix wide;
  Factor narrow;
  // [count x cols x rank], or [count x rank x cols] if rank_first; in fp32 or the dtype of wide.
  void* out;
  // fp32 [splits x count x …], not null if the rows are split.
  float* planes;
  Segments segments;
  int cols;
  int rank;
  int splits;
  bool rank_first;
  bool out_is_fp32;
};

// Returns into how many planes to split the rows, so that every multiprocessor has work.
int splits_of(const Segments& segments, int cols, int rank, int multiprocessors);

cudaError_t run(const Outer& outer, Dtype dtype, cudaStream_t stream);

// uᵀ·v with both in fp32, for few columns: u [rows x p], v [rows x q], out fp32 [count x p x q].
struct NarrowOuter {
  const float* u;
  const float* v;
  int64_t u_stride;
  int64_t v_stride;
  float* out;
  Segments segments;
  int p;
  int q;
};

cudaError_t run(const NarrowOuter& outer, cudaStream_t stream);

}  // namespace cora::gpu
