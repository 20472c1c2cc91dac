// Which rows a block has. Offsets come unchecked from the device: whatever they hold, rows stay in 0:rows.
#pragma once

#include "launch.cuh"
#include "types.h"

namespace cora::gpu {

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

// Where tiles do not cross segment boundaries, sample i has the tiles from first_slot on: a bound that needs no prefix
// sum.
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
