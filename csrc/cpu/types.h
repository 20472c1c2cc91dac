// Plain views of the caller's memory: what the drivers and the micro-kernels share. No torch header, no vector code.
#pragma once

#include <algorithm>
#include <cstdint>

namespace cora::cpu {

// The tile of the output that one micro-kernel call computes. Eight rows and three AVX-512 vectors keep 24 accumulators
// in registers; eight rows whose stride is a multiple of 4 KiB still fit the eight ways of L1, so x is read in place
// (measured on Zen 4: 110 of 116 GFLOP/s in fp32, where 14 x 2 falls to 80 at a row stride of 8 KiB).
constexpr int kTileRows = 8;
constexpr int kTileCols = 48;
// The most rows of one call that multiplies a weight.
constexpr int kMostRows = 128;

enum class Dtype : int8_t { kFloat, kBFloat16, kHalf };

constexpr int64_t size_of(Dtype dtype) { return dtype == Dtype::kFloat ? 4 : 2; }

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// What `size` is cut into, where each piece is to be at most `most` and they are to be as few and as even as they can be,
// in multiples of `step`, as `most` is.
inline int64_t even_share(int64_t size, int64_t most, int64_t step) {
  const int64_t pieces = size > most ? (size + most - 1) / most : 1;
  return round_up((size + pieces - 1) / pieces, step);
}

// A matrix of any strides (in elements); for the factors of a batch, `batch_stride` apart (0: one for all samples).
struct Matrix {
  const void* data;
  Dtype dtype;
  int64_t row_stride;
  int64_t col_stride;
  int64_t batch_stride = 0;

  const void* at(int64_t batch, int64_t row, int64_t col) const {
    return static_cast<const char*>(data) +
           (batch * batch_stride + row * row_stride + col * col_stride) * size_of(dtype);
  }
  // The block of one sample that starts at (row, col).
  Matrix block(int64_t batch, int64_t row, int64_t col) const {
    return {at(batch, row, col), dtype, row_stride, col_stride};
  }
  Matrix transposed() const { return {data, dtype, col_stride, row_stride, batch_stride}; }
};

// The rows of each sample: `length` each, or offsets[i] to offsets[i + 1] (then length is -1).
struct Segments {
  int64_t batch;
  int64_t rows;
  int64_t length;
  const int32_t* offsets;

  int64_t begin(int64_t i) const { return offsets ? offsets[i] : i * length; }
  int64_t end(int64_t i) const { return offsets ? offsets[i + 1] : (i + 1) * length; }
  // The sample that owns `row`; empty samples own none.
  int64_t find(int64_t row) const {
    return offsets ? std::upper_bound(offsets, offsets + batch + 1, row) - offsets - 1 : row / length;
  }
};

// One term of a tile: rows [m x depth] times a packed panel [depth x 48]. `row_stride` is in elements of the rows,
// `panel_stride` in elements of the panel (in pairs, where the panel holds pairs).
struct Strip {
  const void* rows;
  int64_t row_stride;
  const void* panel;
  int64_t panel_stride;
  int64_t depth;
};

// Where a finished tile goes: data = scale · tile + bias (null: none), rounded to the dtype of x, or not if in_fp32.
struct Destination {
  void* data;
  int64_t stride;
  bool in_fp32;
  float scale;
  const float* bias;
};

// How panels hold their elements. kPairs: bf16, two consecutive depths side by side, as vdpbf16ps reads them; an odd
// depth is padded with a zero.
enum class Panel : int8_t { kFloat, kHalf, kPairs };

inline int64_t panel_bytes(Panel kind, int64_t depth, int64_t cols = kTileCols) {
  return kind == Panel::kFloat  ? depth * cols * 4
         : kind == Panel::kHalf ? depth * cols * 2
                                : (depth + 1) / 2 * cols * 4;
}

}  // namespace cora::cpu
