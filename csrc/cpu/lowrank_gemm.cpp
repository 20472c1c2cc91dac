#include "lowrank_gemm.h"

#include <ATen/Parallel.h>

#include "block_worker.h"

namespace cora {
namespace {

// A row block's operands stay in L2 (1 MiB on Zen 4 and later, 1.25 MiB and up on Intel servers) beside a panel of W.
constexpr int64_t kBlockBytes = 384 * 1024;
constexpr int64_t kMaxBlockRows = 128;
// With fewer rows than this for every thread, threads share the columns instead: each then reads its own part of W
// once.
constexpr int64_t kMinRowsPerThread = 64;

int64_t rows_per_block(const LowRankGemm& gemm, int64_t threads) {
  int64_t bytes = 0;
  for (const Rows& rows : gemm.operands)
    bytes += rows.depth * size_of(gemm.dtype);
  const int64_t fit = std::clamp<int64_t>(kBlockBytes / std::max<int64_t>(bytes, 1), kTileRows, kMaxBlockRows);
  // Equal blocks, as many for each thread.
  const int64_t rounds = at::divup(gemm.segments.rows, fit * threads);
  return round_up(at::divup(gemm.segments.rows, rounds * threads), kTileRows);
}

}  // namespace

void run(const LowRankGemm& gemm, const Kernels& kernels) {
  const int64_t rows = gemm.segments.rows;
  if (rows == 0) return;
  const int64_t threads = at::get_num_threads();
  int64_t panels = 0;
  for (const Output& output : gemm.outputs)
    panels += panels_of(output.cols);

  if (panels == 0 || threads == 1 || rows >= threads * kMinRowsPerThread) {
    const int64_t block = rows_per_block(gemm, threads);
    at::parallel_for(0, at::divup(rows, block), 1, [&](int64_t first, int64_t last) {
      BlockWorker worker(gemm, kernels, block);
      for (int64_t i = first; i < last; ++i) {
        worker.load(i * block, std::min(rows, (i + 1) * block));
        worker.shrink();
        worker.expand(0, panels);
      }
    });
    return;
  }
  const int64_t share = round_up(at::divup(rows, threads), kTileRows);
  at::parallel_for(0, at::divup(rows, share), 1, [&](int64_t first, int64_t last) {
    BlockWorker worker(gemm, kernels, share);
    for (int64_t i = first; i < last; ++i) {
      worker.load(i * share, std::min(rows, (i + 1) * share));
      worker.shrink();
    }
  });
  const int64_t block = rows_per_block(gemm, 1);
  at::parallel_for(0, panels, 1, [&](int64_t first, int64_t last) {
    BlockWorker worker(gemm, kernels, block);
    for (int64_t begin = 0; begin < rows; begin += block) {
      worker.load(begin, std::min(rows, begin + block));
      worker.expand(first, last);
    }
  });
}

}  // namespace cora
