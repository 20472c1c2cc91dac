// The one shape of work behind forward, backward and shrink: products of row operands with a frozen matrix, plus
// low-rank products whose inner factor S is itself computed here.
//
//     S_a = scale · Σ_t rows_t · F_t[sample]            (F_t: A in the forward, Bᵀ in the backward)
//     out = Σ_b rows_b · weight_b + Σ_l S_l · E_l[sample] + bias
#pragma once

#include <algorithm>
#include <vector>

#include "kernels.h"

namespace cora::cpu {

// A row operand [M x depth] of unit column stride.
struct Rows {
  const void* data;
  int64_t stride;
  int64_t depth;
};

// rows[operand] · factor, [depth x rank] for each sample.
struct ShrinkTerm {
  int operand;
  Matrix factor;
};

// s [M x rank]; without terms it is given and only read.
struct Shrink {
  std::vector<ShrinkTerm> terms;
  int64_t rank;
  float* s;
};

// rows[operand] · weight [depth x cols]. panels: the weight packed, or null: then `run` packs it.
struct BaseTerm {
  int operand;
  Matrix weight;
  const char* panels;
};

// s[shrink] · factor, [rank x cols] for each sample.
struct ExpandTerm {
  int shrink;
  Matrix factor;
};

// data [M x cols], contiguous; bias fp32 [cols] or null.
struct Output {
  void* data;
  int64_t cols;
  const float* bias;
  std::vector<BaseTerm> bases;
  std::vector<ExpandTerm> expands;
};

struct LowRankGemm {
  Segments segments;
  // Of the row operands and the outputs.
  Dtype dtype;
  // One scale for all samples, or (not null) one for each.
  float scale;
  const float* scales;
  std::vector<Rows> operands;
  std::vector<Shrink> shrinks;
  std::vector<Output> outputs;
};

void run(LowRankGemm& gemm, const Kernels& kernels);

// Whether some factor of these terms differs from sample to sample.
template <class Terms>
bool any_per_sample(const Terms& terms) {
  return std::any_of(terms.begin(), terms.end(), [](const auto& term) { return term.factor.batch_stride != 0; });
}

// How W is packed for rows of this dtype.
inline Panel base_panel(Dtype dtype) {
  return dtype == Dtype::kFloat ? Panel::kFloat : dtype == Dtype::kHalf ? Panel::kHalf : Panel::kPairs;
}

// How the low-rank factors are packed, and the type in which rows are multiplied.
inline Panel low_panel(Dtype dtype, const Kernels& kernels) {
  return dtype == Dtype::kBFloat16 && kernels.bf16_pairs ? Panel::kPairs : Panel::kFloat;
}

// The bytes of an element of rows that are multiplied with such panels.
inline int64_t row_bytes(Panel low) { return low == Panel::kPairs ? 2 : 4; }

// Whether rows of an operand are multiplied as they are, without a copy in the type that is multiplied.
inline bool read_in_place(const LowRankGemm& gemm, const Rows& rows, const Kernels& kernels) {
  return gemm.dtype == Dtype::kFloat || (low_panel(gemm.dtype, kernels) == Panel::kPairs && rows.depth % 2 == 0);
}

inline int64_t panels_of(int64_t cols) { return (cols + kTileCols - 1) / kTileCols; }

}  // namespace cora::cpu
