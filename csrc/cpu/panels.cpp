#include "panels.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <mutex>
#include <vector>

namespace cora::cpu {
namespace {

using Buffer = PanelsOfCall::Buffer;

// So many buffers wait for calls: one for every call that usually runs at once. Fresh memory would cost a call four
// times what packing into memory that is there costs.
constexpr size_t kMostBuffers = 4;

// Rows of a weight that is packed along them are packed this many at a time, for all panels of a thread: longer
// stretches of memory are read on, and the pieces of the panels stay in cache.
constexpr int64_t kRowsAtOnce = 64;

struct FreeBuffers {
  std::mutex mutex;
  std::vector<Buffer> buffers;
};

FreeBuffers& free_buffers() {
  static FreeBuffers& buffers = *new FreeBuffers;
  return buffers;
}

// The smallest free buffer that is large enough; or a new one, and then the largest of those too small is freed.
Buffer take_buffer(int64_t bytes) {
  Buffer taken;
  {
    std::lock_guard<std::mutex> lock(free_buffers().mutex);
    auto& buffers = free_buffers().buffers;
    auto best = buffers.end();
    for (auto it = buffers.begin(); it != buffers.end(); ++it) {
      if (best == buffers.end()) best = it;
      const bool fits = it->size >= bytes, best_fits = best->size >= bytes;
      if (fits != best_fits ? fits : fits ? it->size < best->size : it->size > best->size) best = it;
    }
    if (best != buffers.end()) {
      taken = std::move(*best);
      buffers.erase(best);
    }
  }
  if (taken.size < bytes) {
    taken.data.reset();
    taken.data.reset(static_cast<char*>(::operator new(bytes, std::align_val_t{64})));
    taken.size = bytes;
  }
  return taken;
}

}  // namespace

void pack_panels(Panel kind, const Matrix& weight, int64_t depth, int64_t cols, const Kernels& kernels, char* out) {
  const int64_t bytes = panel_bytes(kind, depth);
  const int64_t step = weight.col_stride == 1 ? kRowsAtOnce : depth;
  at::parallel_for(0, panels_of(cols), 1, [&](int64_t first, int64_t last) {
    for (int64_t k = 0; k < depth; k += step) {
      for (int64_t panel = first; panel < last; ++panel) {
        const int64_t col = panel * kTileCols;
        kernels.pack(kind, weight.block(0, k, col), std::min(depth - k, step), std::min<int64_t>(cols - col, kTileCols),
                     out + panel * bytes + panel_bytes(kind, k), kTileCols);
      }
    }
  });
}

PanelsOfCall::~PanelsOfCall() {
  if (!buffer_.data) return;
  std::lock_guard<std::mutex> lock(free_buffers().mutex);
  if (free_buffers().buffers.size() < kMostBuffers) free_buffers().buffers.push_back(std::move(buffer_));
}

void PanelsOfCall::pack(LowRankGemm& gemm, const Kernels& kernels) {
  const Panel kind = base_panel(gemm.dtype);
  const auto bytes = [&](const Output& output, const BaseTerm& base) {
    return panels_of(output.cols) * panel_bytes(kind, gemm.operands[base.operand].depth);
  };
  int64_t total = 0;
  for (const Output& output : gemm.outputs) {
    for (const BaseTerm& base : output.bases)
      total += base.panels ? 0 : bytes(output, base);
  }
  if (total == 0) return;
  buffer_ = take_buffer(total);
  char* next = buffer_.data.get();
  for (Output& output : gemm.outputs) {
    for (BaseTerm& base : output.bases) {
      if (base.panels) continue;
      pack_panels(kind, base.weight, gemm.operands[base.operand].depth, output.cols, kernels, next);
      base.panels = next;
      next += bytes(output, base);
    }
  }
}

void free_panel_memory() {
  std::lock_guard<std::mutex> lock(free_buffers().mutex);
  free_buffers().buffers.clear();
}

}  // namespace cora::cpu
