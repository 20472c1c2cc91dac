// Chunks of factors: eight neighbours in a row of a factor of any strides, in fp32 or 16 bits, rounded on their way to
// a tile in shared memory.
#pragma once

#include "launch.cuh"
#include "numbers.cuh"
#include "shared_tiles.cuh"
#include "types.h"

namespace cora::gpu {

// As loaded: eight 16-bit numbers in four registers, or eight registers of one number each.
template <int N>
struct Numbers {
  uint32_t bits[N];
};
using Chunk = Numbers<8>;

// The numbers inner:inner+N of row `outer`, N 8 or 4; zeros from `inner_end` on and where the row is not there.
template <int N = 8>
__device__ inline Numbers<N> load_chunk(const Factor& f, int64_t sample, int outer, bool there, int inner,
                                        int inner_end) {
  Numbers<N> chunk = {};
  const int64_t at = sample * f.sample_stride + outer * f.outer_stride + inner * f.inner_stride;
  if (!there || inner >= inner_end) return chunk;
  if (f.sixteen_bytes) {
    const char* from = static_cast<const char*>(f.data) + at * (f.is_fp32 ? 4 : 2);
    if (N == 4 && !f.is_fp32) {
      *reinterpret_cast<uint2*>(chunk.bits) = __ldg(reinterpret_cast<const uint2*>(from));
    } else {
      *reinterpret_cast<uint4*>(chunk.bits) = __ldg(reinterpret_cast<const uint4*>(from));
    }
    if (N == 8 && f.is_fp32) {
      *reinterpret_cast<uint4*>(chunk.bits + N / 2) = __ldg(reinterpret_cast<const uint4*>(from) + 1);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (inner + i >= inner_end) break;
      const int64_t offset = at + i * f.inner_stride;
      chunk.bits[i] = f.is_fp32 ? __ldg(static_cast<const uint32_t*>(f.data) + offset)
                                : __ldg(static_cast<const uint16_t*>(f.data) + offset);
    }
  }
  return chunk;
}

template <typename T>
__device__ inline void to_floats(float (&to)[8], const Chunk& chunk, const Factor& f) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (f.is_fp32) {
      to[i] = __uint_as_float(chunk.bits[i]);
    } else {
      const uint32_t bits = f.sixteen_bytes ? chunk.bits[i / 2] >> (i % 2 * 16) : chunk.bits[i];
      to[i] = unpack<T>(bits & 0xffff).x;
    }
  }
}

// Rounded to T, at a chunk of a tile or a half of one.
template <typename T, int N>
__device__ inline void store_chunk(char* to, const Numbers<N>& chunk, const Factor& f) {
  std::conditional_t<N == 8, uint4, uint2> packed;
  uint32_t* out = reinterpret_cast<uint32_t*>(&packed);
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {
    if (f.is_fp32) {
      out[i] = pack<T>(__uint_as_float(chunk.bits[2 * i]), __uint_as_float(chunk.bits[2 * i + 1]));
    } else {
      out[i] = f.sixteen_bytes ? chunk.bits[i] : chunk.bits[2 * i] | chunk.bits[2 * i + 1] << 16;
    }
  }
  *reinterpret_cast<decltype(packed)*>(to) = packed;
}

// The chunks 0:count of a tile, chunk `at` as load(at) gives it; four loads are under way before the first is stored.
template <typename T, int CHUNKS, typename Load>
__device__ inline void copy_chunks(char* tile, int count, const Factor& f, Load load) {
  constexpr int kAtOnce = 4;
  for (int base = threadIdx.x; base < count; base += kAtOnce * kThreads) {
    Chunk chunks[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = base + i * kThreads;
      if (at < count) chunks[i] = load(at);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = base + i * kThreads;
      if (at < count) store_chunk<T>(tile + swizzled<CHUNKS>(at / CHUNKS, at % CHUNKS), chunks[i], f);
    }
  }
}

}  // namespace cora::gpu
