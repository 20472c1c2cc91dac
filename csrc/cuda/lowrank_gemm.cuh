// One block computes one [BM x BN] tile of y. One pass (R > 0): the tile has rows of one sample, R more columns ride in
// the K loop, and the first column tile writes S. S given (R = 0): tiles cross segment boundaries, and S·B is
// computed for every sample that a tile meets and kept for its rows alone, so that no inf of one reaches another.
#pragma once

#include "factor_chunks.cuh"
#include "launch.cuh"
#include "lowrank_gemm.h"
#include "numbers.cuh"
#include "ptx.cuh"
#include "row_tiles.cuh"
#include "shared_tiles.cuh"

namespace cora::gpu {

// WM x WN warps; a pipeline of STAGES tiles of BK along the depth.
template <typename T_, int BM_, int BN_, int BK_, int WM_, int WN_, int STAGES_, int R_, bool BACKWARD_>
struct GemmTile {
  using T = T_;
  static constexpr int BM = BM_, BN = BN_, BK = BK_, WM = WM_, WN = WN_, STAGES = STAGES_, R = R_;
  static constexpr bool BACKWARD = BACKWARD_;
  // mma tiles of a warp: of y, and of the columns of S that it computes.
  static constexpr int MT = BM / WM / 16, NT = BN / WN / 8, ST = R / 8 > WN ? R / 8 / WN : 1;
  static constexpr int kX = BM * BK * 2, kW = BN * BK * 2, kA = R * BK * 2, kStage = kX + kW + kA;
  // S given: ranks go through shared memory 64 at a time, in the memory of the pipeline.
  static constexpr int kRanks = R ? R : 64;
  static constexpr int kS = BM * kRanks * 2, kB = BN * kRanks * 2, kY = BM * BN * 2;
  static constexpr int kPipeline = STAGES * kStage;
  static constexpr int kShared = (R ? kB : 0) + (kPipeline > kY ? kPipeline : kY);
  static_assert(WM * WN == kWarps && NT % 2 == 0 && (R ? kS : kS + kB) <= kPipeline);
};

// The column tile and the row tile of a block: eight row tiles side by side share each tile of W while it is in L2.
__device__ inline int2 grouped_tile(int block, int n_m, int n_n) {
  constexpr int kGroup = 8;
  const int group = block / (kGroup * n_n), within = block % (kGroup * n_n);
  const int height = min(n_m - group * kGroup, kGroup);
  return {within / height, group * kGroup + within % height};
}

// Copies the tiles of x and W; each thread has one column of chunks in each.
template <typename C>
struct TileLoader {
  static constexpr int KC = C::BK / 8, WC = C::BACKWARD ? C::BN / 8 : KC;
  static constexpr int kXRows = kThreads / KC, kWRows = kThreads / WC;
  static_assert(kXRows % 8 == 0 && kWRows % 8 == 0 && C::BM % kXRows == 0, "a thread's chunks share one swizzle");

  const typename C::T *x, *w;
  int64_t x_step, w_step, w_advance;
  int rows, depth, cols, x_offset, w_offset;

  __device__ TileLoader(const LowRankGemm& p, int first, int last, int column) {
    using T = typename C::T;
    const int tid = threadIdx.x;
    x = static_cast<const T*>(p.x.data) + (first + tid / KC) * p.x.stride + tid % KC * 8;
    x_step = kXRows * p.x.stride;
    rows = last - first - tid / KC;
    x_offset = swizzled<KC>(tid / KC, tid % KC);
    w_offset = swizzled<WC>(tid / WC, tid % WC);
    depth = p.depth - (C::BACKWARD ? tid / WC : tid % KC * 8);
    cols = p.cols - column - (C::BACKWARD ? tid % WC * 8 : tid / WC);
    const int64_t w_row = C::BACKWARD ? tid / WC : column + tid / WC;
    w = static_cast<const T*>(p.w.data) + w_row * p.w.stride + (C::BACKWARD ? column + tid % WC * 8 : tid % WC * 8);
    w_step = kWRows * p.w.stride;
    w_advance = C::BACKWARD ? C::BK * p.w.stride : C::BK;
  }

  // Tiles come in order: k is the depth of the next one.
  __device__ void next(uint32_t stage, int k, int total) {
    const bool x_there = k + int(threadIdx.x % KC) * 8 < total;
#pragma unroll
    for (int i = 0; i < C::BM / kXRows; ++i) {
      copy_async(stage + x_offset + i * kThreads * 16, x + i * x_step, x_there && i * kXRows < rows);
    }
#pragma unroll
    for (int i = 0; i < (C::BACKWARD ? C::BK : C::BN) / kWRows; ++i) {
      const bool there = C::BACKWARD ? k + i * kWRows < depth && cols > 0 : k < depth && i * kWRows < cols;
      copy_async(stage + C::kX + w_offset + i * kThreads * 16, w + i * w_step, there);
    }
    x += C::BK;
    w += w_advance;
  }
};

// Copies the tiles of A through registers, so that any strides and fp32 will do. They are loaded one mma block before
// they are stored.
template <typename C>
struct FactorLoader {
  static constexpr int kRowChunks = C::BACKWARD ? C::BK / 8 : C::R / 8;
  static constexpr int kChunks = C::R * C::BK / 8, kEach = C::R ? cdiv(kChunks, kThreads) : 1;
  Chunk chunks[kEach];

  __device__ void fetch(const LowRankGemm& p, int sample, int k) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = threadIdx.x + i * kThreads, row = at / kRowChunks, inner = at % kRowChunks * 8;
      if (kChunks % kThreads && at >= kChunks) break;
      const int outer = C::BACKWARD ? row : k + row;
      chunks[i] = load_chunk(p.a, sample, outer, outer < (C::BACKWARD ? p.rank : p.depth),
                             C::BACKWARD ? k + inner : inner, C::BACKWARD ? p.depth : p.rank);
    }
  }

  __device__ void store(char* tile, const Factor& a) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = threadIdx.x + i * kThreads;
      if (kChunks % kThreads && at >= kChunks) break;
      store_chunk<typename C::T>(tile + swizzled<kRowChunks>(at / kRowChunks, at % kRowChunks), chunks[i], a);
    }
  }
};

// Ranks j:j+ranks of a [kRanks x BN] tile of B, or of its transpose where y is dx; ranks is a multiple of 16.
template <typename C>
__device__ inline void load_b(char* tile, const LowRankGemm& p, int sample, int column, int j, int ranks) {
  constexpr int kRowChunks = (C::BACKWARD ? C::kRanks : C::BN) / 8;
  copy_chunks<typename C::T, kRowChunks>(tile, (C::BACKWARD ? C::BN : ranks) * kRowChunks, p.b, [&](int at) {
    const int row = at / kRowChunks, inner = at % kRowChunks * 8;
    const int outer = C::BACKWARD ? column + row : j + row;
    return load_chunk(p.b, sample, outer, outer < (C::BACKWARD ? p.cols : p.rank),
                      C::BACKWARD ? j + inner : column + inner, C::BACKWARD ? p.rank : p.cols);
  });
}

// acc += S·B for a warp's part, of 16 ranks a step; for rows first:last of the tile alone if SELECT.
template <typename C, bool SELECT>
__device__ inline void expand(float (&acc)[C::MT][C::NT][4], uint32_t s, uint32_t b, int steps, int first, int last) {
  const int warp = threadIdx.x / 32, row = warp / C::WN * C::MT * 16, n = warp % C::WN * C::NT * 8;
  constexpr int kSteps = C::kRanks / 16;
#pragma unroll
  for (int mi = 0; mi < C::MT; ++mi) {
    const int top = row + mi * 16;
    if (SELECT && (top >= last || top + 16 <= first)) continue;
    uint32_t left[kSteps][4];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (step < steps) load_left<C::kRanks / 8>(left[step], s, top, step * 2);
    }
    const int upper = top + threadIdx.x % 32 / 4;
    const bool keep_upper = upper >= first && upper < last, keep_lower = upper + 8 >= first && upper + 8 < last;
#pragma unroll
    for (int ni = 0; ni < C::NT; ni += 2) {
      float delta[2][4] = {};
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        if (step >= steps) break;
        uint32_t right[4];
        load_right<!C::BACKWARD, (C::BACKWARD ? C::kRanks : C::BN) / 8>(right, b, n + ni * 8, step * 16);
        mma<typename C::T>(delta[0], left[step], right[0], right[1]);
        mma<typename C::T>(delta[1], left[step], right[2], right[3]);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const bool keep = !SELECT || (i % 4 < 2 ? keep_upper : keep_lower);
        if (keep) acc[mi][ni + i / 4][i % 4] += delta[i / 4][i % 4];
      }
    }
  }
}

template <typename C>
__global__ void __launch_bounds__(kThreads, 2) lowrank_gemm_kernel(const __grid_constant__ LowRankGemm p) {
  using T = typename C::T;
  constexpr int BM = C::BM, BN = C::BN, BK = C::BK, R = C::R, MT = C::MT, NT = C::NT, ST = C::ST;
  extern __shared__ __align__(128) char shared[];
  char* const stages = shared + (R ? C::kB : 0);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = warp / C::WN * MT * 16, n = warp % C::WN * NT * 8, n_s = warp % C::WN * ST * 8;

  const int n_m = R ? slots_of(p.segments, BM) : cdiv(p.segments.rows, BM);
  const int2 tile = grouped_tile(blockIdx.x, n_m, cdiv(p.cols, BN));
  const int column = tile.x * BN;
  RowTile place = {0, tile.y * BM, p.segments.rows};
  if constexpr (R > 0) {
    place = row_tile_of(p.segments, tile.y, BM);
    if (place.first >= place.last) return;
  }
  const int rows = min(place.last - place.first, BM);

  TileLoader<C> loader(p, place.first, place.last, column);
  FactorLoader<C> factor;
  const int trips = cdiv(p.depth, BK);
#pragma unroll
  for (int trip = 0; trip < C::STAGES - 1; ++trip) {
    if (trip < trips) {
      loader.next(shared_address(stages + trip * C::kStage), trip * BK, p.depth);
      if constexpr (R > 0) {
        factor.fetch(p, place.sample, trip * BK);
        factor.store(stages + trip * C::kStage + C::kX + C::kW, p.a);
      }
    }
    commit_async();
  }
  if constexpr (R > 0) load_b<C>(shared, p, place.sample, column, 0, R);

  float acc[MT][NT][4] = {};
  float acc_s[MT][ST][4] = {};
  int slot = 0, free_slot = C::STAGES - 1;
  for (int trip = 0; trip < trips; ++trip) {
    wait_async<C::STAGES - 2>();
    __syncthreads();
    const int ahead = trip + C::STAGES - 1;
    if (ahead < trips) {
      loader.next(shared_address(stages + free_slot * C::kStage), ahead * BK, p.depth);
      if constexpr (R > 0) factor.fetch(p, place.sample, ahead * BK);
    }
    commit_async();

    const uint32_t x = shared_address(stages + slot * C::kStage), w = x + C::kX, a = w + C::kW;
#pragma unroll
    for (int k = 0; k < BK; k += 16) {
      uint32_t left[MT][4];
#pragma unroll
      for (int mi = 0; mi < MT; ++mi)
        load_left<BK / 8>(left[mi], x, row + mi * 16, k / 8);
#pragma unroll
      for (int ni = 0; ni < NT; ni += 2) {
        uint32_t right[4];
        load_right<C::BACKWARD, (C::BACKWARD ? BN : BK) / 8>(right, w, n + ni * 8, k);
#pragma unroll
        for (int mi = 0; mi < MT; ++mi) {
          mma<T>(acc[mi][ni], left[mi], right[0], right[1]);
          mma<T>(acc[mi][ni + 1], left[mi], right[2], right[3]);
        }
      }
      if constexpr (R > 0) {
        if (n_s < R) {
          uint32_t right[ST * 2];
          load_right<!C::BACKWARD, (C::BACKWARD ? BK : R) / 8>(right, a, n_s, k);
#pragma unroll
          for (int mi = 0; mi < MT; ++mi) {
#pragma unroll
            for (int si = 0; si < ST; ++si)
              mma<T>(acc_s[mi][si], left[mi], right[2 * si], right[2 * si + 1]);
          }
        }
      }
    }
    if constexpr (R > 0) {
      if (ahead < trips) factor.store(stages + free_slot * C::kStage + C::kX + C::kW, p.a);
    }
    slot = slot + 1 == C::STAGES ? 0 : slot + 1;
    free_slot = free_slot + 1 == C::STAGES ? 0 : free_slot + 1;
  }
  wait_async<0>();
  __syncthreads();

  if constexpr (R > 0) {
    const float scale = scale_of(p.scaling, place.sample);
    if (n_s < R) {
#pragma unroll
      for (int i = 0; i < MT * ST * 2; ++i) {
        const int mi = i / (ST * 2), si = i / 2 % ST, half = i % 2;
        const int r = row + mi * 16 + half * 8 + lane / 4, c = n_s + si * 8 + lane % 4 * 2;
        const float low = acc_s[mi][si][half * 2] * scale, high = acc_s[mi][si][half * 2 + 1] * scale;
        *reinterpret_cast<uint32_t*>(stages + swizzled<R / 8>(r, c / 8) + c % 8 * 2) = pack<T>(low, high);
        if (tile.x == 0 && r < rows) {
          float* s = p.s + int64_t(place.first + r) * p.rank;
          if (c < p.rank) s[c] = low;
          if (c + 1 < p.rank) s[c + 1] = high;
        }
      }
    }
    __syncthreads();
    expand<C, false>(acc, shared_address(stages), shared_address(shared), R / 16, 0, BM);
  } else {
    const Factor s = {p.s, 0, p.rank, 1, true, p.rank % 8 == 0};
    const int i_first = segment_of(p.segments, place.first);
    const int i_last = segment_of(p.segments, place.first + rows - 1);
    for (int j = 0; j < p.rank; j += 64) {
      const int steps = cdiv(min(p.rank - j, 64), 16);
      copy_chunks<T, 8>(stages, BM * 8, s, [&](int at) {
        return load_chunk(s, 0, place.first + at / 8, at / 8 < rows, j + at % 8 * 8, p.rank);
      });
      for (int i = i_first; i <= i_last; ++i) {
        const Span span = rows_of(p.segments, i);
        load_b<C>(stages + C::kS, p, i, column, j, steps * 16);
        __syncthreads();
        expand<C, true>(acc, shared_address(stages), shared_address(stages + C::kS), steps, span.first - place.first,
                        span.last - place.first);
        __syncthreads();
      }
    }
  }

  // The tile goes through shared memory, so that rows of y are stored 16 bytes a thread.
  if constexpr (R > 0) __syncthreads();
#pragma unroll
  for (int ni = 0; ni < NT; ++ni) {
    const int c = n + ni * 8 + lane % 4 * 2;
    float2 bias = {};
    if (p.bias && column + c < p.cols) {
      bias = unpack<T>(*reinterpret_cast<const uint32_t*>(static_cast<const T*>(p.bias) + column + c));
    }
#pragma unroll
    for (int i = 0; i < MT * 2; ++i) {
      const int mi = i / 2, half = i % 2, r = row + mi * 16 + half * 8 + lane / 4;
      float low = acc[mi][ni][half * 2] + bias.x, high = acc[mi][ni][half * 2 + 1] + bias.y;
      if (p.accumulate && r < rows && column + c < p.cols) {
        const T* y = static_cast<const T*>(p.y) + int64_t(place.first + r) * p.cols + column + c;
        const float2 before = unpack<T>(*reinterpret_cast<const uint32_t*>(y));
        low += before.x;
        high += before.y;
      }
      *reinterpret_cast<uint32_t*>(stages + swizzled<BN / 8>(r, c / 8) + c % 8 * 2) = pack<T>(low, high);
    }
  }
  __syncthreads();
  for (int at = threadIdx.x; at < BM * BN / 8; at += kThreads) {
    const int r = at / (BN / 8), c = at % (BN / 8);
    if (r < rows && column + c * 8 < p.cols) {
      T* y = static_cast<T*>(p.y) + int64_t(place.first + r) * p.cols + column + c * 8;
      *reinterpret_cast<uint4*>(y) = *reinterpret_cast<const uint4*>(stages + swizzled<BN / 8>(r, c));
    }
  }
}

}  // namespace cora::gpu
