// Causal attention within each sample of a packed batch, for every head:
//
//     S = scale · q·kᵀ, keys up to the query's own position      P = softmax(S)      out = P·v
//     backward: dP = g·vᵀ   dS = P ∘ (dP − rowsum(P ∘ dP))   dq = scale · dS·k   dk = scale · dSᵀ·q   dv = Pᵀ·g
//
// A sample with a parent reads all of that one's keys and values before its own. The forward holds S and P eight rows at
// a time; the backward computes them anew and keeps P and dS of a block of queries, for their products by keys.
#pragma once

#include "kernels.h"

namespace cora::cpu {

// [M, heads, dim] of unit stride within a head.
struct Heads {
  const void* data;
  int64_t row_stride;
  int64_t head_stride;
};

struct Attention {
  Segments segments;
  // [B]: the sample whose keys each sample reads before its own, -1 for none. A parent has none. Null: no sample has.
  const int32_t* parents;
  Dtype dtype;
  // Queries have `heads`; each kv_head serves heads / kv_heads of them in a row.
  int64_t heads, kv_heads, dim;
  float scale;
  Heads q, k, v;
  // [2, heads, M]: the largest of each row of S, and 1 / Σ e^(s − largest). The forward writes them, the backward reads
  // them. The logarithm of the sum would not do: at scores of thousands its rounding alone would be off by 1e-4.
  float* sums;
};

// out [M, heads, dim], contiguous, as are the gradients: each like its tensor.
void run_forward(const Attention& attention, void* out, const Kernels& kernels);
void run_backward(const Attention& attention, const Heads& g, void* dq, void* dk, void* dv, const Kernels& kernels);

}  // namespace cora::cpu
