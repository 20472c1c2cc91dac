#include "lowrank_gemm.h"

#include <ATen/Parallel.h>

#include "block_worker.h"

namespace cora {
namespace {

// The rows that are multiplied with a panel of W while it is in L2. Fewer would read W more often, which costs more
// than rows of x that come from L3 instead (at K = 11008: 1.1 times the frozen linear's time with 16 rows, 0.9 with
// 64).
constexpr int64_t kMaxBlockRows = 128;
// With fewer rows than this for every thread, threads share the columns instead: each then reads its own part of W
// once.
constexpr int64_t kMinRowsPerThread = 64;

// Calls block(first, last) for equal blocks of the rows [begin, end), in whole tiles.
template <class Block>
void for_blocks(int64_t begin, int64_t end, const Block& block) {
  for (int64_t left = at::divup(end - begin, kMaxBlockRows); left > 0; --left) {
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

  const int64_t share = round_up(at::divup(rows, threads), kTileRows);
  if (panels == 0 || threads == 1 || rows >= threads * kMinRowsPerThread) {
    at::parallel_for(0, at::divup(rows, share), 1, [&](int64_t first, int64_t last) {
      BlockWorker worker(gemm, kernels, kMaxBlockRows);
      for_blocks(first * share, std::min(rows, last * share), [&](int64_t begin, int64_t end) {
        worker.load(begin, end);
        worker.shrink(true);
        worker.expand(0, panels);
      });
    });
    return;
  }
  at::parallel_for(0, at::divup(rows, share), 1, [&](int64_t first, int64_t last) {
    BlockWorker worker(gemm, kernels, share);
    for (int64_t i = first; i < last; ++i) {
      worker.load(i * share, std::min(rows, (i + 1) * share));
      worker.shrink(false);
    }
  });
  at::parallel_for(0, panels, 1, [&](int64_t first, int64_t last) {
    BlockWorker worker(gemm, kernels, kMaxBlockRows);
    for_blocks(0, rows, [&](int64_t begin, int64_t end) {
      worker.load(begin, end);
      worker.expand(first, last);
    });
  });
}

}  // namespace cora
