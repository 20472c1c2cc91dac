#include "outer.h"

#include <ATen/Parallel.h>

#include "lowrank_gemm.h"
#include "scratch.h"

namespace cora::cpu {
namespace {

// So many rows are summed in one go. It is a constant, so that the order of the sum depends on the segments alone and
// never on the threads.
constexpr int64_t kChunk = 256;
// So much of the wide operand is packed at a time: it stays in L2.
constexpr int64_t kGroupBytes = 384 * 1024;

// An OuterWorker computes up to `max_panels` panels of 48 columns of `wide` for one sample after another, over the
// thread's scratch memory.
class OuterWorker {
 public:
  OuterWorker(const Outer& outer, const Kernels& kernels, int64_t max_panels)
      : outer_(outer),
        kernels_(kernels),
        in_place_(low_panel(outer.wide_dtype, kernels) == Panel::kPairs),
        sum_size_(round_up(outer.narrow_cols, kTileRows) * kTileCols) {
    const int64_t narrow = round_up(outer.narrow_cols, 16) * kChunk * 4;
    const int64_t group = in_place_ ? 0 : kGroupBytes;
    const int64_t sums = max_panels * sum_size_ * 4;
    Scratch& scratch = Scratch::of_thread(Scratch::padded(narrow) + Scratch::padded(group) + Scratch::padded(sums));
    narrow_ = scratch.take(narrow);
    group_ = scratch.take(group);
    sums_ = reinterpret_cast<float*>(scratch.take(sums));
  }

  void run(int64_t sample, int64_t first_panel, int64_t last_panel) {
    const int64_t begin = outer_.per_sample ? outer_.segments.begin(sample) : 0;
    const int64_t end = outer_.per_sample ? outer_.segments.end(sample) : outer_.segments.rows;
    if (begin == end) std::fill_n(sums_, (last_panel - first_panel) * sum_size_, 0.f);
    for (int64_t row = begin; row < end; row += kChunk) {
      const int64_t stop = std::min(end, row + kChunk);
      if (in_place_) {
        add_in_place(row, stop, first_panel, last_panel, row > begin);
      } else {
        add_packed(row, stop, first_panel, last_panel, row > begin);
      }
    }
    for (int64_t panel = first_panel; panel < last_panel; ++panel) {
      store(sample, panel, sums_ + (panel - first_panel) * sum_size_);
    }
  }

 private:
  Matrix wide(int64_t row, int64_t col) const {
    return Matrix{outer_.wide, outer_.wide_dtype, outer_.wide_stride, 1}.block(0, row, col);
  }

  Matrix narrow(int64_t begin) const {
    return {outer_.narrow + begin * outer_.narrow_stride, Dtype::kFloat, outer_.narrow_stride, 1};
  }

  int64_t cols_of(int64_t panel) const { return std::min<int64_t>(outer_.wide_cols - panel * kTileCols, kTileCols); }

  // sums_ (+)= narrow[begin:end]ᵀ · these panels of wide[begin:end].
  void add_in_place(int64_t begin, int64_t end, int64_t first_panel, int64_t last_panel, bool add) {
    const int64_t stride = round_up(outer_.narrow_cols, 16);
    kernels_.pack(Panel::kPairs, narrow(begin), end - begin, outer_.narrow_cols, narrow_, stride);
    // After the last panel the same columns of the next rows are read.
    const int64_t back = end < outer_.segments.rows ? (end - begin) * outer_.wide_stride : 0;
    for (int64_t panel = first_panel; panel < last_panel; ++panel) {
      const int64_t col = panel * kTileCols;
      const int64_t ahead = panel + 1 < last_panel ? kTileCols : back - (panel - first_panel) * kTileCols;
      kernels_.outer(narrow_, stride, outer_.narrow_cols, wide(begin, col).data, outer_.wide_stride, ahead, end - begin,
                     cols_of(panel), add, sums_ + (panel - first_panel) * sum_size_);
    }
  }

  // Computes the same for wide of any dtype, in fp32: narrow is turned, so that its columns are rows, and wide is
  // packed.
  void add_packed(int64_t begin, int64_t end, int64_t first_panel, int64_t last_panel, bool add) {
    const int64_t stride = round_up(end - begin, 16);
    kernels_.pack(Panel::kFloat, narrow(begin).transposed(), outer_.narrow_cols, end - begin, narrow_, stride);
    const int64_t panels = kGroupBytes / panel_bytes(Panel::kFloat, end - begin) - 1;
    for (int64_t panel = first_panel; panel < last_panel; panel += panels) {
      add_group(begin, end, panel, std::min(last_panel, panel + panels), add,
                sums_ + (panel - first_panel) * sum_size_);
    }
  }

  // fp32 is read in place; the rest is packed, the panels side by side, along the rows: packed one by one, narrow and
  // tall, they would wait for memory at each row.
  void add_group(int64_t begin, int64_t end, int64_t first_panel, int64_t last_panel, bool add, float* sums) {
    const int64_t depth = end - begin;
    const int64_t first_col = first_panel * kTileCols;
    const int64_t cols = std::min(outer_.wide_cols, last_panel * kTileCols) - first_col;
    const Matrix source = wide(begin, first_col);
    const char* panels = static_cast<const char*>(source.data);
    int64_t stride = outer_.wide_stride;
    if (outer_.wide_dtype != Dtype::kFloat || cols % kTileCols != 0) {
      // A stride off the powers of two: else the rows of a panel would share few sets of L1.
      stride = round_up(cols, 16) + 16;
      kernels_.pack(Panel::kFloat, source, depth, cols, group_, stride);
      panels = group_;
    }
    const TileFn tile = kernels_.tile[static_cast<int>(outer_.wide_dtype)];
    for (int64_t col = 0; col < cols; col += kTileCols, sums += sum_size_) {
      const Strip strip{narrow_, round_up(depth, 16), panels + col * 4, stride, depth};
      tile(outer_.narrow_cols, std::min<int64_t>(cols - col, kTileCols), nullptr, 0, &strip, 1, add, sums, nullptr);
    }
  }

  void store(int64_t sample, int64_t panel, const float* sum) {
    const int64_t col = panel * kTileCols, cols = cols_of(panel);
    const int64_t q = outer_.narrow_cols;
    const int64_t element = size_of(outer_.out_dtype);
    char* out = static_cast<char*>(outer_.out) + sample * outer_.wide_cols * q * element;
    if (outer_.wide_first) return kernels_.store_transposed(sum, q, cols, outer_.out_dtype, out + col * q * element, q);
    for (int64_t j = 0; j < q; ++j) {
      kernels_.store_row(sum + j * kTileCols, cols, outer_.out_dtype, out + (j * outer_.wide_cols + col) * element);
    }
  }

  const Outer& outer_;
  const Kernels& kernels_;
  const bool in_place_;
  const int64_t sum_size_;
  char* narrow_;
  char* group_;
  float* sums_;
};

}  // namespace

void run(const Outer& outer, const Kernels& kernels) {
  const int64_t samples = outer.per_sample ? outer.segments.batch : 1;
  const int64_t panels = panels_of(outer.wide_cols);
  at::parallel_for(0, samples * panels, 1, [&](int64_t first, int64_t last) {
    OuterWorker worker(outer, kernels, std::min(panels, last - first));
    while (first < last) {
      const int64_t sample = first / panels;
      const int64_t stop = std::min(last, (sample + 1) * panels);
      worker.run(sample, first - sample * panels, stop - sample * panels);
      first = stop;
    }
  });
}

}  // namespace cora::cpu
