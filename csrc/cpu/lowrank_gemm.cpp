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

// How many rows a block may have, whole tiles.
int64_t fitting_rows(const LowRankGemm& gemm) {
  int64_t bytes = 0;
  for (const Rows& rows : gemm.operands)
    bytes += rows.depth * size_of(gemm.dtype);
  return std::clamp<int64_t>(kBlockBytes / std::max<int64_t>(bytes, 1) / kTileRows * kTileRows, kTileRows,
                             kMaxBlockRows);
}

// Calls block(first, last) for equal blocks of the rows [begin, end), whole tiles of at most `fit` rows.
template <class Block>
void for_blocks(int64_t begin, int64_t end, int64_t fit, const Block& block) {
  for (int64_t left = at::divup(end - begin, fit); left > 0; --left) {
    const int64_t stop = std::min(end, begin + round_up(at::divup(end - begin, left), kTileRows));
    block(begin, stop);
    begin = stop;
  }
}

}  // namespace

void run(const LowRankGemm& gemm, const Kernels& kernels) {
  const int64_t rows = gemm.segments.rows;
  if (rows == 0) return;
  const int64_t threads = at::get_num_threads();
  int64_t panels = 0;
  for (const Output& output : gemm.outputs)
    panels += panels_of(output.cols);

  const int64_t fit = fitting_rows(gemm);
  const int64_t share = round_up(at::divup(rows, threads), kTileRows);
  if (panels == 0 || threads == 1 || rows >= threads * kMinRowsPerThread) {
    at::parallel_for(0, at::divup(rows, share), 1, [&](int64_t first, int64_t last) {
      BlockWorker worker(gemm, kernels, fit);
      for_blocks(first * share, std::min(rows, last * share), fit, [&](int64_t begin, int64_t end) {
        worker.load(begin, end);
        worker.shrink();
        worker.expand(0, panels);
      });
    });
    return;
  }
  at::parallel_for(0, at::divup(rows, share), 1, [&](int64_t first, int64_t last) {
    BlockWorker worker(gemm, kernels, share);
    for (int64_t i = first; i < last; ++i) {
      worker.load(i * share, std::min(rows, (i + 1) * share));
      worker.shrink();
    }
  });
  at::parallel_for(0, panels, 1, [&](int64_t first, int64_t last) {
    BlockWorker worker(gemm, kernels, fit);
    for_blocks(0, rows, fit, [&](int64_t begin, int64_t end) {
      worker.load(begin, end);
      worker.expand(first, last);
    });
  });
}

}  // namespace cora
