#include "lowrank_gemm.h"

#include <ATen/Parallel.h>

#include <atomic>
#include <vector>

#include "block_worker.h"
#include "panels.h"

namespace cora::cpu {
namespace {

// So many rows are multiplied with a panel of W while it is in L2. With fewer, W is read more often, which costs more
// than to read rows of x from L3: at K = 2048 to 11008 and 1024 rows, 128 took 1.03 to 1.05 times as long in bf16, and
// 1.02 to 1.06 times at K = 2048 and 4096 in fp32.
constexpr int64_t kBlockRows = 512;
// The same where rows are converted first: the copies should stay in cache.
constexpr int64_t kConvertedRows = 128;
// With fewer rows than this for every thread, threads share the columns instead: each then reads its own part of W
// once.
constexpr int64_t kMinRowsPerThread = 64;

// The most rows of a block.
int64_t block_rows(const LowRankGemm& gemm, const Kernels& kernels) {
  const bool in_place = std::all_of(gemm.operands.begin(), gemm.operands.end(),
                                    [&](const Rows& rows) { return read_in_place(gemm, rows, kernels); });
  return in_place ? kBlockRows : kConvertedRows;
}

// Calls block(first, last) for equal blocks of the rows [begin, end), at most `most` of them, in whole tiles.
template <class Call>
void for_blocks(int64_t begin, int64_t end, int64_t most, const Call& call) {
  for (int64_t left = at::divup(end - begin, most); left > 0; --left) {
    const int64_t stop = std::min(end, begin + round_up(at::divup(end - begin, left), kTileRows));
    call(begin, stop);
    begin = stop;
  }
}

// A row block. Its own thread computes the first panel; the others are taken one by one, by that thread and by those
// that are done with their own rows: threads seldom get the same share of a machine.
struct Block {
  int64_t begin;
  int64_t end;
  // The next panel to be taken; past the last until S is there.
  std::atomic<int64_t> next;
};

class Blocks {
 public:
  Blocks(const LowRankGemm& gemm, const Kernels& kernels, int64_t panels, int64_t share, int64_t most)
      : gemm_(gemm),
        kernels_(kernels),
        panels_(panels),
        share_(share),
        most_(most),
        per_share_(at::divup(share, most)),
        blocks_(per_share_ * at::divup(gemm.segments.rows, share)) {
    for (Block& block : blocks_)
      block.next = panels_;
  }

  // Works off the rows of these shares, and then what is left of others.
  void run(int64_t first, int64_t last) {
    BlockWorker worker(gemm_, kernels_, std::min(share_, most_));
    for (int64_t i = first; i < last; ++i) {
      Block* block = blocks_.data() + i * per_share_;
      const int64_t share_end = std::min(gemm_.segments.rows, (i + 1) * share_);
      for_blocks(i * share_, share_end, most_, [&](int64_t begin, int64_t end) {
        block->begin = begin;
        block->end = end;
        worker.load(begin, end);
        worker.shrink(true);
        const int64_t step = worker.panels_at_once();
        block->next.store(step, std::memory_order_release);
        worker.expand(0, std::min(panels_, step));
        take_panels(worker, *block++);
      });
    }
    for (size_t i = 0; i < blocks_.size(); ++i) {
      Block& block = blocks_[(last * per_share_ + i) % blocks_.size()];
      if (block.next.load(std::memory_order_acquire) >= panels_) continue;
      worker.load(block.begin, block.end);
      take_panels(worker, block);
    }
  }

 private:
  void take_panels(BlockWorker& worker, Block& block) {
    const int64_t step = worker.panels_at_once();
    for (int64_t panel; (panel = block.next.fetch_add(step, std::memory_order_relaxed)) < panels_;)
      worker.expand(panel, std::min(panels_, panel + step));
  }

  const LowRankGemm& gemm_;
  const Kernels& kernels_;
  const int64_t panels_, share_, most_, per_share_;
  std::vector<Block> blocks_;
};

}  // namespace

void run(LowRankGemm& gemm, const Kernels& kernels) {
  const int64_t rows = gemm.segments.rows;
  if (rows == 0) return;
  const int64_t threads = at::get_num_threads();
  int64_t panels = 0;
  for (const Output& output : gemm.outputs)
    panels += panels_of(output.cols);

  const int64_t share = round_up(at::divup(rows, threads), kTileRows);
  const int64_t most = block_rows(gemm, kernels);
  const bool by_rows = panels == 0 || threads == 1 || rows >= threads * kMinRowsPerThread;
  // A weight that is packed for this call alone: where one worker needs a panel, for one block of rows, that worker
  // packs it when it does; else the threads pack the whole first, or each would pack it for itself.
  PanelsOfCall packed;
  if (rows > (by_rows ? std::min(share, most) : most)) packed.pack(gemm, kernels);
  if (by_rows) {
    Blocks blocks(gemm, kernels, panels, share, most);
    at::parallel_for(0, at::divup(rows, share), 1, [&](int64_t first, int64_t last) { blocks.run(first, last); });
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
    BlockWorker worker(gemm, kernels, std::min(rows, most));
    for_blocks(0, rows, most, [&](int64_t begin, int64_t end) {
      worker.load(begin, end);
      worker.expand(first, last);
    });
  });
}

}  // namespace cora::cpu
