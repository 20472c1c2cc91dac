// One block computes `share` columns of one sample's y on the CUDA cores, and for them all of its S: A comes from L2
// after the first block. Threads split the depth, and their sums are added in one order.
#include "decode.h"

#include "factor_chunks.cuh"
#include "launch.cuh"
#include "numbers.cuh"

namespace cora::gpu {
namespace {

constexpr int kDecodeThreads = 256, kDecodeWarps = kDecodeThreads / 32;
// So many depths of x are in shared memory at a time.
constexpr int BK = 1024;
// Chunks of A or B that a thread has under way: a block or two a multiprocessor must keep the memory busy.
template <int ROWS>
constexpr int kAtOnce = ROWS == 1 ? 8 : 16 / ROWS;

// s [ROWS][kDecodeRank] = scale·x·A for the sample's rows.
template <typename T, int ROWS>
__device__ inline void shrink(float (*s)[kDecodeRank], const Decode& p, int sample, char* scratch) {
  uint16_t (*const x_tile)[BK] = reinterpret_cast<uint16_t (*)[BK]>(scratch);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // Lanes are chunks of eight ranks by depths; a power of two of chunks, so that shuffles add lanes of one chunk.
  int chunks = 1;
  while (chunks * 8 < p.rank)
    chunks *= 2;
  const int rank = lane % chunks * 8, depths = kDecodeThreads / chunks, k_first = threadIdx.x / chunks;
  const T* const x = static_cast<const T*>(p.x.data) + int64_t(sample) * p.length * p.x.stride;
  float sums[ROWS][8] = {};
  for (int k0 = 0; k0 < p.depth; k0 += BK) {
    __syncthreads();
    for (int at = threadIdx.x; at < p.length * (BK / 8); at += kDecodeThreads) {
      const int t = at / (BK / 8), k = at % (BK / 8) * 8;
      if (k0 + k < p.depth) {
        *reinterpret_cast<uint4*>(&x_tile[t][k]) = *reinterpret_cast<const uint4*>(x + t * p.x.stride + k0 + k);
      }
    }
    __syncthreads();
    const int k_last = min(BK, p.depth - k0);
    for (int k = k_first; k < k_last; k += depths * kAtOnce<ROWS>) {
      Chunk loaded[kAtOnce<ROWS>];
#pragma unroll
      for (int j = 0; j < kAtOnce<ROWS>; ++j) {
        const int at = k + j * depths;
        loaded[j] = load_chunk(p.a, sample, k0 + at, at < k_last, rank, p.rank);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce<ROWS>; ++j) {
        const int at = k + j * depths;
        if (at >= k_last) break;
        float a[8];
        to_floats<T>(a, loaded[j], p.a);
#pragma unroll
        for (int t = 0; t < ROWS; ++t) {
          const float x_k = t < p.length ? unpack<T>(x_tile[t][at]).x : 0.0f;
#pragma unroll
          for (int i = 0; i < 8; ++i)
            sums[t][i] += x_k * a[i];
        }
      }
    }
  }
  // The lanes of a chunk are added first, then the warps in order.
#pragma unroll
  for (int t = 0; t < ROWS; ++t) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      for (int other = chunks; other < 32; other *= 2)
        sums[t][i] += __shfl_xor_sync(~0u, sums[t][i], other);
    }
  }
  __syncthreads();
  float (*const partial)[ROWS][kDecodeRank] = reinterpret_cast<float (*)[ROWS][kDecodeRank]>(scratch);
  if (lane < chunks) {
#pragma unroll
    for (int t = 0; t < ROWS; ++t) {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        partial[warp][t][rank + i] = sums[t][i];
    }
  }
  __syncthreads();
  const float scale = scale_of(p.scaling, sample);
  for (int at = threadIdx.x; at < ROWS * p.rank; at += kDecodeThreads) {
    const int t = at / p.rank, r = at % p.rank;
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w)
      sum += partial[w][t][r];
    s[t][r] = sum * scale;
    if (blockIdx.y == 0 && t < p.length) p.s[(int64_t(sample) * p.length + t) * p.rank + r] = s[t][r];
  }
}

template <typename T, int ROWS>
__global__ void __launch_bounds__(kDecodeThreads, 2) decode_kernel(const __grid_constant__ Decode p) {
  __shared__ float s[ROWS][kDecodeRank];
  constexpr int kX = ROWS * BK * 2, kPartial = kDecodeWarps * ROWS * kDecodeRank * 4;
  __shared__ __align__(16) char scratch[kX > kPartial ? kX : kPartial];
  const int sample = blockIdx.x;
  if (p.a.data) {
    shrink<T, ROWS>(s, p, sample, scratch);
  } else {
    for (int at = threadIdx.x; at < p.length * p.rank; at += kDecodeThreads) {
      s[at / p.rank][at % p.rank] = p.s[int64_t(sample) * p.length * p.rank + at];
    }
  }
  __syncthreads();

  const int last = min(int(blockIdx.y + 1) * p.share, p.cols);
  for (int column = blockIdx.y * p.share + threadIdx.x * 8; column < last; column += kDecodeThreads * 8) {
    float y[ROWS][8] = {};
    for (int r0 = 0; r0 < p.rank; r0 += kAtOnce<ROWS>) {
      Chunk loaded[kAtOnce<ROWS>];
#pragma unroll
      for (int j = 0; j < kAtOnce<ROWS>; ++j) {
        loaded[j] = load_chunk(p.b, sample, r0 + j, r0 + j < p.rank, column, p.cols);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce<ROWS>; ++j) {
        if (r0 + j >= p.rank) break;
        float b[8];
        to_floats<T>(b, loaded[j], p.b);
#pragma unroll
        for (int t = 0; t < ROWS; ++t) {
          const float s_r = t < p.length ? s[t][r0 + j] : 0.0f;
#pragma unroll
          for (int i = 0; i < 8; ++i)
            y[t][i] += s_r * b[i];
        }
      }
    }
    uint4 bias = {};
    if (p.bias) bias = *reinterpret_cast<const uint4*>(static_cast<const T*>(p.bias) + column);
    const uint32_t bias_pairs[4] = {bias.x, bias.y, bias.z, bias.w};
#pragma unroll
    for (int t = 0; t < ROWS; ++t) {
      if (t >= p.length) break;
      uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 add = unpack<T>(bias_pairs[i]);
        pairs[i] = pack<T>(y[t][2 * i] + add.x, y[t][2 * i + 1] + add.y);
      }
      T* to = static_cast<T*>(p.y) + (int64_t(sample) * p.length + t) * p.cols + column;
      *reinterpret_cast<uint4*>(to) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
  }
}

template <typename T>
cudaError_t launch(const Decode& decode, cudaStream_t stream) {
  const auto kernel = decode.length == 1   ? decode_kernel<T, 1>
                      : decode.length == 2 ? decode_kernel<T, 2>
                      : decode.length <= 4 ? decode_kernel<T, 4>
                                           : decode_kernel<T, 8>;
  kernel<<<dim3(decode.samples, cdiv(decode.cols, decode.share)), kDecodeThreads, 0, stream>>>(decode);
  return cudaGetLastError();
}

}  // namespace

cudaError_t run(Decode decode, Dtype dtype, int multiprocessors, cudaStream_t stream) {
  // Two blocks for every multiprocessor, with columns for all of its threads.
  const int pieces = cdiv(2 * multiprocessors, decode.samples), trip = kDecodeThreads * 8;
  // Where S is given, nothing is computed twice, and the columns of one warp are enough for a block.
  const int unit = decode.a.data ? trip : 32 * 8;
  decode.share = cdiv(cdiv(decode.cols, pieces), unit) * unit;
  return dtype == Dtype::kHalf ? launch<__half>(decode, stream) : launch<__nv_bfloat16>(decode, stream);
}

}  // namespace cora::gpu
