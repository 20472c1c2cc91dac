// Tiles in shared memory, in rows of CHUNKS chunks of 16 bytes, and the operands of mma from them.
#pragma once

#include "ptx.cuh"

namespace cora::gpu {

// Where a chunk lies, in bytes: permuted so that eight rows of one chunk, as eight chunks of one row, use every bank
// once.
template <int CHUNKS>
__device__ constexpr int swizzled(int row, int chunk) {
  constexpr int kPeriod = CHUNKS < 8 ? CHUNKS : 8;
  return (row * CHUNKS + (chunk ^ (row / (8 / kPeriod)) % kPeriod)) * 16;
}

// The left operand of mma, rows row:row+16 and columns 8·chunk:8·chunk+16 of a tile.
template <int CHUNKS>
__device__ inline void load_left(uint32_t (&to)[4], uint32_t tile, int row, int chunk) {
  const int lane = threadIdx.x % 32;
  load_matrices<false>(to, tile + swizzled<CHUNKS>(row + lane % 16, chunk + lane / 16));
}

// The right operands of two neighbouring mmas, columns n:n+16 and depths k:k+16. The tile's rows are n, or k if K_ROWS.
template <bool K_ROWS, int CHUNKS>
__device__ inline void load_right(uint32_t (&to)[4], uint32_t tile, int n, int k) {
  const int lane = threadIdx.x % 32;
  if constexpr (K_ROWS) {
    load_matrices<true>(to, tile + swizzled<CHUNKS>(k + lane % 16, n / 8 + lane / 16));
  } else {
    load_matrices<false>(to, tile + swizzled<CHUNKS>(n + lane % 8 + lane / 16 * 8, k / 8 + lane / 8 % 2));
  }
}

// The same for one mma, columns n:n+8.
template <bool K_ROWS, int CHUNKS>
__device__ inline void load_right(uint32_t (&to)[2], uint32_t tile, int n, int k) {
  const int lane = threadIdx.x % 16;
  if constexpr (K_ROWS) {
    load_matrices<true>(to, tile + swizzled<CHUNKS>(k + lane, n / 8));
  } else {
    load_matrices<false>(to, tile + swizzled<CHUNKS>(n + lane % 8, k / 8 + lane / 8));
  }
}

}  // namespace cora::gpu
