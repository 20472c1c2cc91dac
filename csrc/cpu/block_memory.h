// The working memory of one thread that works off row blocks: pieces of its scratch memory.
#pragma once

#include <algorithm>
#include <vector>

#include "lowrank_gemm.h"
#include "scratch.h"

namespace cora::cpu {

struct BlockMemory {
  // For each operand, its rows in the type that is multiplied (null where they are read in place), and a panel of its
  // factor in a shrink.
  std::vector<char*> converted, shrink_panels;
  // For each base term of an output, a panel; null where the terms of all outputs are packed.
  std::vector<char*> base_panels;
  // For each shrink, its S in bf16, where that is multiplied; for each term of an expand, a panel.
  std::vector<char*> rounded_s, expand_panels;
  // One row of an operand; [max_rows x products_cols]; [max_rows x block_cols].
  float *row, *products, *block;

  BlockMemory(const LowRankGemm& gemm, const Kernels& kernels, int64_t max_rows, int64_t products_cols,
              int64_t block_cols) {
    const auto carve = [&](Scratch* scratch) {
      return take(gemm, kernels, max_rows, products_cols, block_cols, scratch);
    };
    carve(&Scratch::of_thread(carve(nullptr)));
  }

 private:
  // Takes all pieces and returns their bytes. Without a scratch it only adds them up.
  int64_t take(const LowRankGemm& gemm, const Kernels& kernels, int64_t max_rows, int64_t products_cols,
               int64_t block_cols, Scratch* scratch) {
    const Panel low = low_panel(gemm.dtype, kernels);
    int64_t bytes = 0;
    const auto piece = [&](int64_t size) {
      bytes += Scratch::padded(size);
      return scratch ? scratch->take(size) : nullptr;
    };
    int64_t depth = 0, rank = 0;
    size_t expands = 0, bases = 0;
    for (const Rows& rows : gemm.operands)
      depth = std::max(depth, rows.depth);
    for (const Shrink& shrink : gemm.shrinks)
      rank = std::max(rank, shrink.rank);
    for (const Output& output : gemm.outputs) {
      expands = std::max(expands, output.expands.size());
      bases = std::max(bases, output.bases.size());
    }

    converted.clear();
    shrink_panels.clear();
    base_panels.clear();
    rounded_s.clear();
    expand_panels.clear();
    for (const Rows& rows : gemm.operands) {
      const bool in_place = read_in_place(gemm, rows, kernels);
      converted.push_back(in_place ? nullptr : piece(max_rows * round_up(rows.depth, 2) * row_bytes(low)));
      shrink_panels.push_back(piece(panel_bytes(low, rows.depth)));
    }
    for (size_t i = 0; i < bases; ++i)
      base_panels.push_back(piece(base_bytes(gemm, i)));
    for (const Shrink& shrink : gemm.shrinks)
      rounded_s.push_back(low == Panel::kPairs ? piece(max_rows * round_up(shrink.rank, 2) * 2) : nullptr);
    for (size_t i = 0; i < expands; ++i)
      expand_panels.push_back(piece(panel_bytes(low, rank)));
    row = reinterpret_cast<float*>(piece(round_up(depth, 2) * 4));
    products = reinterpret_cast<float*>(piece(max_rows * products_cols * 4));
    block = reinterpret_cast<float*>(piece(max_rows * block_cols * 4));
    return bytes;
  }

  // The bytes of the largest panel that has to be packed for the i-th base term of an output.
  static int64_t base_bytes(const LowRankGemm& gemm, size_t i) {
    int64_t bytes = 0;
    for (const Output& output : gemm.outputs) {
      if (i >= output.bases.size() || output.bases[i].panels) continue;
      bytes = std::max(bytes, panel_bytes(base_panel(gemm.dtype), gemm.operands[output.bases[i].operand].depth));
    }
    return bytes;
  }
};

}  // namespace cora::cpu
