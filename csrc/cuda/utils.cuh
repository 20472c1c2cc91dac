// What the kernels share: the PTX instructions, swizzled tiles in shared memory, chunks of low-rank factors, and the
// questions that are asked of the batch. Needs no torch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "types.h"

namespace cora::gpu {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;

__host__ __device__ constexpr int cdiv(int a, int b) { return (a + b - 1) / b; }

// ---- PTX

__device__ inline uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// 16 bytes from global to shared memory, or zeros.
__device__ inline void copy_async(uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

__device__ inline void commit_async() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING>
__device__ inline void wait_async() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

template <bool TRANSPOSED>
__device__ inline void load_matrices(uint32_t (&to)[4], uint32_t from) {
  if constexpr (TRANSPOSED) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
  }
}

template <bool TRANSPOSED>
__device__ inline void load_matrices(uint32_t (&to)[2], uint32_t from) {
  if constexpr (TRANSPOSED) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(from)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(from)
                 : "memory");
  }
}

// c [16 x 8] += a [16 x 16] · b [16 x 8], summed in fp32.
template <typename T>
__device__ inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// ---- 16-bit numbers

template <typename T>
__device__ inline uint32_t pack(float low, float high) {
  uint32_t bits;
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(low, high);
    memcpy(&bits, &pair, 4);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    memcpy(&bits, &pair, 4);
  }
  return bits;
}

template <typename T>
__device__ inline float2 unpack(uint32_t bits) {
  if constexpr (std::is_same_v<T, __half>) {
    __half2 pair;
    memcpy(&pair, &bits, 4);
    return __half22float2(pair);
  } else {
    return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
  }
}

// ---- tiles in shared memory: rows of CHUNKS chunks of 16 bytes

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

// ---- chunks of factors: eight neighbours in a row of a factor of any strides, in fp32 or 16 bits

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

// ---- the batch. Offsets come unchecked from the device: whatever they hold, rows stay in 0:rows.

struct Span {
  int first;
  int last;
};

__device__ inline Span rows_of(const Segments& s, int i) {
  if (!s.offsets) return {i * s.length, (i + 1) * s.length};
  return {max(s.offsets[i], 0), min(s.offsets[i + 1], s.rows)};
}

// The sample that owns a row: the last one that starts at or before it.
__device__ inline int segment_of(const Segments& s, int row) {
  if (!s.offsets) return row / s.length;
  int low = 0, high = s.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    s.offsets[middle] <= row ? low = middle : high = middle - 1;
  }
  return low;
}

// Where tiles do not straddle borders, sample i has the tiles from first_slot on: a bound that needs no prefix sum.
__device__ inline int first_slot(const Segments& s, int i, int tile) {
  return s.offsets ? s.offsets[i] / tile + i : i * cdiv(s.length, tile);
}

__host__ __device__ inline int slots_of(const Segments& s, int tile) {
  return s.offsets ? s.rows / tile + s.count : s.count * cdiv(s.length, tile);
}

struct RowTile {
  int sample;
  int first;
  // Of the sample; the tile is empty unless first < last.
  int last;
};

__device__ inline RowTile row_tile_of(const Segments& s, int slot, int tile) {
  int low = 0, high = s.count - 1;
  if (!s.offsets) {
    low = slot / cdiv(s.length, tile);
  }
  while (s.offsets && low < high) {
    const int middle = (low + high + 1) / 2;
    first_slot(s, middle, tile) <= slot ? low = middle : high = middle - 1;
  }
  const Span span = rows_of(s, low);
  const int64_t first = span.first + int64_t(slot - first_slot(s, low, tile)) * tile;
  const bool inside = first >= span.first && first < span.last;
  return {low, inside ? int(first) : span.last, span.last};
}

}  // namespace cora::gpu
