// Where one worker finds the panels of weights: in the packs of the whole, or, where there are none, in its own memory,
// into which it packs the one that it needs. That one stays in cache for the rows that are multiplied with it.
#pragma once

#include <algorithm>
#include <vector>

#include "block_memory.h"
#include "lowrank_gemm.h"

namespace cora::cpu {

class BasePanels {
 public:
  BasePanels(const LowRankGemm& gemm, const Kernels& kernels, const BlockMemory& memory)
      : gemm_(gemm), kernels_(kernels), memory_(memory), packed_(memory.base_panels.size()) {}

  // The panel of output.bases[index].
  const char* find(const Output& output, size_t index, int64_t panel) {
    const BaseTerm& base = output.bases[index];
    const Panel kind = base_panel(gemm_.dtype);
    const int64_t depth = gemm_.operands[base.operand].depth;
    if (base.panels) return base.panels + panel * panel_bytes(kind, depth);
    Packed& packed = packed_[index];
    if (packed.output != &output || packed.panel != panel) {
      const int64_t col = panel * kTileCols;
      kernels_.pack(kind, base.weight.block(0, 0, col), depth, std::min<int64_t>(output.cols - col, kTileCols),
                    memory_.base_panels[index], kTileCols);
      packed = {&output, panel};
    }
    return memory_.base_panels[index];
  }

 private:
  struct Packed {
    const Output* output = nullptr;
    int64_t panel = 0;
  };

  const LowRankGemm& gemm_;
  const Kernels& kernels_;
  const BlockMemory& memory_;
  // What the memory of each base term holds.
  std::vector<Packed> packed_;
};

}  // namespace cora::cpu
