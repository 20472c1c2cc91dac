// By which ways a BlockWorker computes rows: by tiles, or by one of the modes that its file lists. Nothing but the call
// and the sample decides, neither the threads nor the tile.
#pragma once

#include <algorithm>

#include "lowrank_gemm.h"

namespace cora::cpu {

// Samples of at most this many rows have their factors read in place: packing them would cost more.
constexpr int64_t kFewRows = 3;

// The largest rank whose S is joined with the first panel of W.
constexpr int64_t kJointRank = 16;

class BlockModes {
 public:
  BlockModes(const LowRankGemm& gemm, const Kernels& kernels)
      : by_block(is_paired(gemm, kernels) && kernels.block_product),
        can_join(is_paired(gemm, kernels) && kernels.joint && !by_block && joinable(gemm)),
        gemm_(gemm) {}

  // The mode "by block" holds; the mode "joined" may hold.
  const bool by_block, can_join;

  // Whether this sample's factors are read in place.
  template <class Terms>
  bool in_place(const Terms& terms, int64_t sample) const {
    return gemm_.segments.end(sample) - gemm_.segments.begin(sample) <= kFewRows && any_per_sample(terms) &&
           std::all_of(terms.begin(), terms.end(), [](const auto& term) { return term.factor.col_stride == 1; });
  }

  // Whether some of the rows [begin, end) have factors that are read in place.
  bool any_in_place(int64_t begin, int64_t end) const {
    for (int64_t row = begin; row < end;) {
      const int64_t sample = gemm_.segments.find(row);
      for (const Shrink& shrink : gemm_.shrinks) {
        if (in_place(shrink.terms, sample)) return true;
      }
      for (const Output& output : gemm_.outputs) {
        if (in_place(output.expands, sample)) return true;
      }
      row = gemm_.segments.end(sample);
    }
    return false;
  }

  bool all_in_place(const Output& output, int64_t begin, int64_t end) const {
    for (int64_t row = begin; row < end; ++row) {
      if (!in_place(output.expands, gemm_.segments.find(row))) return false;
    }
    return true;
  }

 private:
  static bool is_paired(const LowRankGemm& gemm, const Kernels& kernels) {
    return low_panel(gemm.dtype, kernels) == Panel::kPairs;
  }

  // Whether there is one S of small rank, and the first output is of the same row operands.
  static bool joinable(const LowRankGemm& gemm) {
    if (gemm.shrinks.size() != 1 || gemm.shrinks[0].rank > kJointRank || gemm.outputs.empty()) return false;
    const auto& terms = gemm.shrinks[0].terms;
    const auto& bases = gemm.outputs[0].bases;
    return !terms.empty() && std::equal(terms.begin(), terms.end(), bases.begin(), bases.end(),
                                        [](const auto& t, const auto& b) { return t.operand == b.operand; });
  }

  const LowRankGemm& gemm_;
};

}  // namespace cora::cpu
