// One block computes [BM x R] of S, for rows of one sample. Four warps share the rows, or, where there are but 16, each
// 16 of every 64 depths, summed in order at the end.
#include "shrink.h"

#include "factor_chunks.cuh"
#include "launch.cuh"
#include "ptx.cuh"
#include "row_tiles.cuh"
#include "shared_tiles.cuh"

namespace cora::gpu {
namespace {

constexpr int BK = 64, kStages = 4;

template <typename T, int BM, int R, bool INNER_IS_DEPTH>
__global__ void __launch_bounds__(kThreads) shrink_kernel(const __grid_constant__ Shrink p) {
  constexpr int kX = BM * BK * 2, kStage = kX + R * BK * 2, KC = BK / 8;
  constexpr int kRowChunks = INNER_IS_DEPTH ? KC : R / 8, kChunks = R * KC, kEach = cdiv(kChunks, kThreads);
  constexpr bool kSplit = BM == 16;
  extern __shared__ __align__(128) char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const RowTile place = row_tile_of(p.segments, blockIdx.x, BM);
  if (place.first >= place.last) return;
  const int rows = min(place.last - place.first, BM);
  const int rank_first = blockIdx.y * R;

  const T* const x = static_cast<const T*>(p.x.data) + place.first * p.x.stride;
  const auto copy_rows = [&](char* stage, int k) {
#pragma unroll
    for (int i = 0; i < BM * KC / kThreads; ++i) {
      const int row = (threadIdx.x + i * kThreads) / KC, chunk = threadIdx.x % KC, at = k + chunk * 8;
      copy_async(shared_address(stage) + swizzled<KC>(row, chunk), x + row * p.x.stride + at,
                 row < rows && at < p.depth);
    }
  };
  Chunk chunks[kEach];
  const auto fetch = [&](int k) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = threadIdx.x + i * kThreads, row = at / kRowChunks, inner = at % kRowChunks * 8;
      const int outer = INNER_IS_DEPTH ? rank_first + row : k + row;
      chunks[i] = load_chunk(p.a, place.sample, outer, outer < (INNER_IS_DEPTH ? p.rank : p.depth),
                             INNER_IS_DEPTH ? k + inner : rank_first + inner, INNER_IS_DEPTH ? p.depth : p.rank);
    }
  };
  const auto store = [&](char* stage) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = threadIdx.x + i * kThreads;
      store_chunk<T>(stage + kX + swizzled<kRowChunks>(at / kRowChunks, at % kRowChunks), chunks[i], p.a);
    }
  };

  const int trips = cdiv(p.depth, BK);
#pragma unroll
  for (int trip = 0; trip < kStages - 1; ++trip) {
    if (trip < trips) {
      copy_rows(shared + trip * kStage, trip * BK);
      fetch(trip * BK);
      store(shared + trip * kStage);
    }
    commit_async();
  }
  float acc[R / 8][4] = {};
  for (int trip = 0; trip < trips; ++trip) {
    wait_async<kStages - 2>();
    __syncthreads();
    const int ahead = trip + kStages - 1;
    if (ahead < trips) {
      copy_rows(shared + ahead % kStages * kStage, ahead * BK);
      fetch(ahead * BK);
    }
    commit_async();
    const uint32_t tile = shared_address(shared + trip % kStages * kStage);
#pragma unroll
    for (int step = 0; step < (kSplit ? 1 : BK / 16); ++step) {
      const int k = (kSplit ? warp : step) * 16;
      uint32_t left[4];
      load_left<KC>(left, tile, kSplit ? 0 : warp * 16, k / 8);
#pragma unroll
      for (int ri = 0; ri < R / 8; ri += 2) {
        uint32_t right[4];
        load_right<!INNER_IS_DEPTH, kRowChunks>(right, tile + kX, ri * 8, k);
        mma<T>(acc[ri], left, right[0], right[1]);
        mma<T>(acc[ri + 1], left, right[2], right[3]);
      }
    }
    if (ahead < trips) store(shared + ahead % kStages * kStage);
  }
  wait_async<0>();

  if constexpr (kSplit) {
    __syncthreads();
    float4* partial = reinterpret_cast<float4*>(shared);
#pragma unroll
    for (int ri = 0; ri < R / 8; ++ri) {
      partial[(warp * R / 8 + ri) * 32 + lane] = make_float4(acc[ri][0], acc[ri][1], acc[ri][2], acc[ri][3]);
    }
    __syncthreads();
    if (warp > 0) return;
#pragma unroll
    for (int i = R / 8; i < kWarps * R / 8; ++i) {
      const float4 other = partial[i * 32 + lane];
      float* sum = acc[i % (R / 8)];
      sum[0] += other.x, sum[1] += other.y, sum[2] += other.z, sum[3] += other.w;
    }
  }
  const float scale = scale_of(p.scaling, place.sample);
#pragma unroll
  for (int i = 0; i < R / 2; ++i) {
    const int row = (kSplit ? 0 : warp * 16) + i / 2 % 2 * 8 + lane / 4;
    const int column = rank_first + i / 4 * 8 + lane % 4 * 2 + i % 2;
    if (row < rows && column < p.rank) {
      float* s = p.s + int64_t(place.first + row) * p.rank + column;
      *s = acc[i / 4][i % 4] * scale + (p.accumulate ? *s : 0.0f);
    }
  }
}

template <typename T, int BM, int R>
cudaError_t launch(const Shrink& shrink, cudaStream_t stream) {
  constexpr int kShared = kStages * (BM + R) * BK * 2;
  const auto kernel = shrink.inner_is_depth ? shrink_kernel<T, BM, R, true> : shrink_kernel<T, BM, R, false>;
  const dim3 grid(slots_of(shrink.segments, BM), cdiv(shrink.rank, R));
  return launch_kernel(kernel, grid, kShared, shrink, stream);
}

template <typename T>
cudaError_t launch(const Shrink& shrink, bool few_rows, cudaStream_t stream) {
  if (shrink.rank <= 16) return few_rows ? launch<T, 16, 16>(shrink, stream) : launch<T, 64, 16>(shrink, stream);
  if (shrink.rank <= 32) return few_rows ? launch<T, 16, 32>(shrink, stream) : launch<T, 64, 32>(shrink, stream);
  return few_rows ? launch<T, 16, 64>(shrink, stream) : launch<T, 64, 64>(shrink, stream);
}

}  // namespace

cudaError_t run(const Shrink& shrink, Dtype dtype, int multiprocessors, cudaStream_t stream) {
  // Tiles of 64 rows read A the least often; of 16 where those would leave multiprocessors idle.
  const bool few_rows = slots_of(shrink.segments, 64) < multiprocessors;
  return dtype == Dtype::kHalf ? launch<__half>(shrink, few_rows, stream)
                               : launch<__nv_bfloat16>(shrink, few_rows, stream);
}

}  // namespace cora::gpu
