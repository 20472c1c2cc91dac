// One block computes a [128 x R] tile of one sample's wideᵀ·narrow over a share of its rows, 64 at a time. Shares go to
// planes of their own, which are summed in order.
#include "outer.h"

#include "factor_chunks.cuh"
#include "launch.cuh"
#include "numbers.cuh"
#include "ptx.cuh"
#include "row_tiles.cuh"
#include "shared_tiles.cuh"

namespace cora::gpu {
namespace {

constexpr int BP = 128, BM = 64, kStages = 3, PC = BP / 8;
// The lengths of the rows of sums in shared memory, padded against bank conflicts: a row for one rank, or one column.
constexpr int kCols = BP + 4;
template <int R>
constexpr int kRanks = R + 8;

template <typename T>
__device__ inline void store_number(void* to, int64_t at, float value, bool is_fp32) {
  if (is_fp32) {
    static_cast<float*>(to)[at] = value;
  } else {
    static_cast<uint16_t*>(to)[at] = uint16_t(pack<T>(value, 0.0f));
  }
}

template <typename T, int R>
__global__ void __launch_bounds__(kThreads, 2) outer_kernel(const __grid_constant__ Outer p) {
  constexpr int kWide = BM * BP * 2, kStage = kWide + BM * R * 2, kEach = cdiv(BM * R / 4, kThreads),
                MT = BP / kWarps / 16;
  extern __shared__ __align__(128) char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int tiles = cdiv(p.cols, BP), sample = blockIdx.x / tiles;
  const int column = blockIdx.x % tiles * BP, rank_first = blockIdx.z * R;
  const Span span = rows_of(p.segments, sample);
  const int share = cdiv(cdiv(max(span.last - span.first, 0), p.splits), BM) * BM;
  // The first row of a share may lie beyond the last by less than a share: 64 bits keep the sum from overflowing.
  const int64_t start = span.first + int64_t(blockIdx.y) * share;
  const int last = int(min(start + share, int64_t(span.last))), first = int(min(start, int64_t(last)));

  const int chunk = threadIdx.x % PC, row = threadIdx.x / PC;
  const T* const wide = static_cast<const T*>(p.wide.data) + column + chunk * 8;
  const bool chunk_there = column + chunk * 8 < p.cols;
  const auto copy_wide = [&](char* stage, int m) {
#pragma unroll
    for (int i = 0; i < BM * PC / kThreads; ++i) {
      const int r = row + i * (kThreads / PC);
      copy_async(shared_address(stage) + swizzled<PC>(r, chunk), wide + (m + r) * p.wide.stride,
                 chunk_there && m + r < last);
    }
  };
  // Numbers come by fours: eight in fp32 are two loads, of half a sector each, and neighbours would leave the other
  // halves.
  Numbers<4> fours[kEach];
  const auto fetch = [&](int m) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = threadIdx.x + i * kThreads, r = m + at / (R / 4);
      fours[i] = load_chunk<4>(p.narrow, 0, r, r < last, rank_first + at % (R / 4) * 4, p.rank);
    }
  };
  const auto store = [&](char* stage) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = threadIdx.x + i * kThreads;
      char* const to = stage + kWide + swizzled<R / 8>(at / (R / 4), at / 2 % (R / 8)) + at % 2 * 8;
      store_chunk<T>(to, fours[i], p.narrow);
    }
  };

  const int trips = cdiv(last - first, BM);
#pragma unroll
  for (int trip = 0; trip < kStages - 1; ++trip) {
    if (trip < trips) {
      copy_wide(shared + trip * kStage, first + trip * BM);
      fetch(first + trip * BM);
      store(shared + trip * kStage);
    }
    commit_async();
  }
  float acc[MT][R / 8][4] = {};
  for (int trip = 0; trip < trips; ++trip) {
    wait_async<kStages - 2>();
    __syncthreads();
    const int ahead = trip + kStages - 1;
    if (ahead < trips) {
      copy_wide(shared + ahead % kStages * kStage, first + ahead * BM);
      fetch(first + ahead * BM);
    }
    commit_async();
    const uint32_t tile = shared_address(shared + trip % kStages * kStage);
#pragma unroll
    for (int m = 0; m < BM; m += 16) {
      uint32_t left[MT][4];
#pragma unroll
      for (int mi = 0; mi < MT; ++mi) {
        // wideᵀ: the rows of the left operand are columns of the tile.
        const int at = warp * MT * 2 + mi * 2 + lane / 8 % 2;
        load_matrices<true>(left[mi], tile + swizzled<PC>(m + lane % 8 + lane / 16 * 8, at));
      }
#pragma unroll
      for (int ri = 0; ri < R / 8; ri += 2) {
        uint32_t right[4];
        load_right<true, R / 8>(right, tile + kWide, ri * 8, m);
#pragma unroll
        for (int mi = 0; mi < MT; ++mi) {
          mma<T>(acc[mi][ri], left[mi], right[0], right[1]);
          mma<T>(acc[mi][ri + 1], left[mi], right[2], right[3]);
        }
      }
    }
    if (ahead < trips) store(shared + ahead % kStages * kStage);
  }
  wait_async<0>();
  __syncthreads();

  // The sums go through shared memory, so that neighbours in `out` are stored by neighbouring threads.
  float* const sums = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < MT * R / 4; ++i) {
    const int mi = i / (R / 4), ri = i / 2 % (R / 8), half = i % 2;
    const int c = warp * MT * 16 + mi * 16 + half * 8 + lane / 4, r = ri * 8 + lane % 4 * 2;
    const float low = acc[mi][ri][half * 2], high = acc[mi][ri][half * 2 + 1];
    if (p.rank_first) {
      sums[r * kCols + c] = low;
      sums[(r + 1) * kCols + c] = high;
    } else {
      *reinterpret_cast<float2*>(sums + c * kRanks<R> + r) = make_float2(low, high);
    }
  }
  __syncthreads();
  const int64_t base = int64_t(sample) * p.cols * p.rank;
  const int64_t plane = int64_t(blockIdx.y) * p.segments.count * p.cols * p.rank;
  for (int at = threadIdx.x; at < BP * R; at += kThreads) {
    const int c = p.rank_first ? at % BP : at / R, r = p.rank_first ? at / BP : at % R;
    if (column + c >= p.cols || rank_first + r >= p.rank) continue;
    const int64_t to = p.rank_first ? base + int64_t(rank_first + r) * p.cols + column + c
                                    : base + int64_t(column + c) * p.rank + rank_first + r;
    const float sum = sums[p.rank_first ? r * kCols + c : c * kRanks<R> + r];
    if (p.splits > 1) {
      p.planes[plane + to] = sum;
    } else {
      store_number<T>(p.out, to, sum, p.out_is_fp32);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) sum_planes_kernel(const __grid_constant__ Outer p) {
  const int64_t count = int64_t(p.segments.count) * p.cols * p.rank;
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= count) return;
  float sum = 0.0f;
  for (int i = 0; i < p.splits; ++i)
    sum += p.planes[i * count + at];
  store_number<T>(p.out, at, sum, p.out_is_fp32);
}

// One block computes one number of one sample.
__global__ void __launch_bounds__(kThreads) narrow_outer_kernel(const __grid_constant__ NarrowOuter p) {
  __shared__ float sums[kWarps];
  const int sample = blockIdx.x / (p.p * p.q), i = blockIdx.x / p.q % p.p, j = blockIdx.x % p.q;
  const Span span = rows_of(p.segments, sample);
  float sum = 0.0f;
  for (int row = span.first + threadIdx.x; row < span.last; row += kThreads) {
    sum += p.u[row * p.u_stride + i] * p.v[row * p.v_stride + j];
  }
  for (int other = 16; other > 0; other /= 2)
    sum += __shfl_xor_sync(~0u, sum, other);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) p.out[blockIdx.x] = sums[0] + sums[1] + sums[2] + sums[3];
}

template <typename T, int R>
cudaError_t launch(const Outer& outer, cudaStream_t stream) {
  constexpr int kPipeline = kStages * BM * (BP + R) * 2,
                kSums = (BP * kRanks<R> > R * kCols ? BP * kRanks<R> : R * kCols) * 4;
  constexpr int kShared = kPipeline > kSums ? kPipeline : kSums;
  const dim3 grid(cdiv(outer.cols, BP) * outer.segments.count, outer.splits, cdiv(outer.rank, R));
  return launch_kernel(outer_kernel<T, R>, grid, kShared, outer, stream);
}

template <typename T>
cudaError_t launch(const Outer& outer, cudaStream_t stream) {
  const cudaError_t error = outer.rank <= 16   ? launch<T, 16>(outer, stream)
                            : outer.rank <= 32 ? launch<T, 32>(outer, stream)
                                               : launch<T, 64>(outer, stream);
  if (error != cudaSuccess || outer.splits == 1) return error;
  const int64_t count = int64_t(outer.segments.count) * outer.cols * outer.rank;
  sum_planes_kernel<T><<<unsigned((count + kThreads - 1) / kThreads), kThreads, 0, stream>>>(outer);
  return cudaGetLastError();
}

}  // namespace

int splits_of(const Segments& segments, int cols, int rank, int multiprocessors) {
  const int blocks = cdiv(cols, BP) * cdiv(rank, 64) * segments.count;
  // Two blocks for every multiprocessor, at least four trips of a mean sample for each.
  const int wanted = cdiv(2 * multiprocessors, blocks), trips = cdiv(segments.rows, segments.count * BM);
  return wanted < trips / 4 ? wanted : trips / 4 > 1 ? trips / 4 : 1;
}

cudaError_t run(const Outer& outer, Dtype dtype, cudaStream_t stream) {
  return dtype == Dtype::kHalf ? launch<__half>(outer, stream) : launch<__nv_bfloat16>(outer, stream);
}

cudaError_t run(const NarrowOuter& outer, cudaStream_t stream) {
  narrow_outer_kernel<<<outer.segments.count * outer.p * outer.q, kThreads, 0, stream>>>(outer);
  return cudaGetLastError();
}

}  // namespace cora::gpu
