// A BlockWorker works off row blocks of a LowRankGemm, one worker for each thread, over the thread's scratch memory. It
// loads the rows of a block, computes their S (shrink), then panels of 48 columns of their outputs (expand).
//
// Usually it goes by tiles: it packs the factors of a sample, and one call of the micro-kernel multiplies eight rows
// with a panel of W and with a panel of B. In three modes a part of the products is there before the tiles are:
//
//     in place   A sample has few rows and factors of its own, as in decoding. The factors are not packed: they are
//                read where they lie, for one row at a time (shrink_row, expand_rows_in_place). The products with B
//                wait in `products`, and the sample's rows of a tile begin with them (begin_rows, expand_short). Each
//                sample is decided on by itself, so that a tile may hold rows of both kinds.
//     joined     The rows are bf16, multiplied in pairs, and the rank is small. shrink multiplies them with the first
//                panel of W in the same pass (join_rows), into `block`, and the tiles of that panel begin with it. A
//                block that has rows in place is not joined.
//     by block   The machine has matrix units, which want more rows than a tile has. All rows of the block are
//                multiplied with a panel of W at once (multiply_block), into `block`, and every tile begins with it.
#pragma once

#include <algorithm>
#include <vector>

#include "base_panels.h"
#include "block_memory.h"
#include "block_modes.h"
#include "lowrank_gemm.h"

namespace cora::cpu {

// So many bytes of products are computed at a time: long stretches of the factors' rows, but no more than stays in L2.
constexpr int64_t kProductBytes = 256 * 1024;

// How many rows are joined in one go.
constexpr int64_t kJointRows = 24;

class BlockWorker {
 public:
  BlockWorker(const LowRankGemm& gemm, const Kernels& kernels, int64_t max_rows)
      : gemm_(gemm),
        kernels_(kernels),
        low_(low_panel(gemm.dtype, kernels)),
        row_bytes_(row_bytes(low_)),
        modes_(gemm, kernels),
        group_panels_(std::max<int64_t>(kProductBytes / (max_rows * kTileCols * 4), 1)),
        memory_(gemm, kernels, max_rows, group_panels_ * kTileCols, modes_.by_block || modes_.can_join ? kTileCols : 0),
        base_panels_(gemm, kernels, memory_),
        operands_(gemm.operands.size()),
        packed_sample_(memory_.expand_panels.size()) {}

  ~BlockWorker() {
    if (modes_.by_block) kernels_.release();
  }

  // Makes rows [begin, end) current.
  void load(int64_t begin, int64_t end) {
    begin_ = begin;
    end_ = end;
    joined_ = false;
    rounded_ = false;
    for (size_t i = 0; i < gemm_.operands.size(); ++i) {
      const Rows& rows = gemm_.operands[i];
      const char* source = static_cast<const char*>(rows.data) + begin * rows.stride * size_of(gemm_.dtype);
      if (read_in_place(gemm_, rows, kernels_)) {
        operands_[i] = {source, rows.stride};
        continue;
      }
      const int64_t stride = round_up(rows.depth, 2);
      for (int64_t row = 0; row < end - begin; ++row) {
        kernels_.convert_row(source + row * rows.stride * size_of(gemm_.dtype), gemm_.dtype, rows.depth,
                             low_ == Panel::kPairs, memory_.converted[i] + row * stride * row_bytes_);
      }
      operands_[i] = {memory_.converted[i], stride};
    }
  }

  // Computes S of the current rows. Where expand comes next for the same rows, their first panel may be joined.
  void shrink(bool expands_next) {
    joined_ = expands_next && modes_.can_join && !modes_.any_in_place(begin_, end_);
    for (const Shrink& shrink : gemm_.shrinks) {
      if (shrink.terms.empty()) continue;
      const bool per_sample = gemm_.scales || any_per_sample(shrink.terms);
      for (int64_t col = 0; col < shrink.rank; col += kTileCols) {
        for (int64_t row = begin_; row < end_;) {
          const int64_t sample = per_sample ? gemm_.segments.find(row) : 0;
          const int64_t stop = per_sample ? std::min(end_, gemm_.segments.end(sample)) : end_;
          if (modes_.in_place(shrink.terms, sample)) {
            for (; row < stop; ++row)
              shrink_row(shrink, sample, row, col);
          } else {
            shrink_rows(shrink, sample, row, stop, col);
          }
          row = stop;
        }
      }
    }
  }

  // How many panels expand is best asked for: one, or as many as share the products of rows in place.
  int64_t panels_at_once() const { return modes_.any_in_place(begin_, end_) ? group_panels_ : 1; }

  // Computes panels [first, last) of the current rows, counted through all outputs. S must be there.
  void expand(int64_t first, int64_t last) {
    if (!rounded_) round_s();
    rounded_ = true;
    for (const Output& output : gemm_.outputs) {
      const int64_t panels = panels_of(output.cols);
      const int64_t stop = std::min(last, panels);
      for (int64_t group = std::max<int64_t>(first, 0); group < stop; group += group_panels_) {
        const int64_t group_stop = std::min(stop, group + group_panels_);
        expand_rows_in_place(output, group * kTileCols, std::min(output.cols, group_stop * kTileCols));
        for (int64_t panel = group; panel < group_stop; ++panel)
          expand_panel(output, panel, panel - group);
      }
      first -= panels;
      last -= panels;
    }
  }

 private:
  struct Operand {
    const char* data;
    int64_t stride;
  };

  Strip strip(int operand, int64_t row, const void* panel, int64_t panel_stride) const {
    const Operand& rows = operands_[operand];
    return {rows.data + (row - begin_) * rows.stride * row_bytes_, rows.stride, panel, panel_stride,
            gemm_.operands[operand].depth};
  }

  // Computes the columns of S from `col` on for rows [begin, end), which share one sample's factors.
  void shrink_rows(const Shrink& shrink, int64_t sample, int64_t begin, int64_t end, int64_t col) {
    const int64_t cols = std::min<int64_t>(shrink.rank - col, kTileCols);
    const int64_t panel_stride = round_up(cols, 16);
    for (const ShrinkTerm& term : shrink.terms) {
      const Matrix factor = term.factor.block(sample, 0, col);
      const int64_t depth = gemm_.operands[term.operand].depth;
      kernels_.pack(low_, factor, depth, cols, memory_.shrink_panels[term.operand], panel_stride);
    }
    const Destination to{nullptr, shrink.rank, true, gemm_.scales ? gemm_.scales[sample] : gemm_.scale, nullptr};
    if (joined_) return join_rows(shrink, begin, end, to.scale);
    strips_.resize(shrink.terms.size());
    for (int64_t row = begin; row < end; row += kTileRows) {
      const int rows = std::min<int64_t>(end - row, kTileRows);
      for (size_t t = 0; t < shrink.terms.size(); ++t) {
        const int operand = shrink.terms[t].operand;
        strips_[t] = strip(operand, row, memory_.shrink_panels[operand], panel_stride);
      }
      fetch_rows(row + kTileRows, std::min(end_, row + 2 * kTileRows));
      Destination tile_to = to;
      tile_to.data = shrink.s + row * shrink.rank + col;
      tile()(rows, cols, nullptr, 0, strips_.data(), strips_.size(), false, c_, &tile_to);
    }
  }

  // Computes the same, with the factors packed already, and with it the first panel of the first output into `block`.
  void join_rows(const Shrink& shrink, int64_t begin, int64_t end, float scale) {
    const int n = shrink.terms.size();
    for (int64_t row = begin; row < end; row += kJointRows) {
      const int rows = std::min(end - row, kJointRows);
      strips_.clear();
      add_bases(gemm_.outputs[0], 0, row);
      for (const ShrinkTerm& term : shrink.terms)
        strips_.push_back(strip(term.operand, row, memory_.shrink_panels[term.operand], kJointRank));
      fetch_rows(row + kJointRows, std::min(end_, row + 2 * kJointRows));
      kernels_.joint(rows, strips_.data(), strips_.data() + n, n, scale, memory_.block + (row - begin_) * kTileCols,
                     shrink.s + row * shrink.rank, shrink.rank, shrink.rank);
    }
  }

  void shrink_row(const Shrink& shrink, int64_t sample, int64_t row, int64_t col) {
    const int64_t cols = std::min<int64_t>(shrink.rank - col, kTileCols);
    for (const ShrinkTerm& term : shrink.terms) {
      const Rows& rows = gemm_.operands[term.operand];
      const char* source = static_cast<const char*>(rows.data) + row * rows.stride * size_of(gemm_.dtype);
      kernels_.convert_row(source, gemm_.dtype, rows.depth, false, memory_.row);
      kernels_.row_product(memory_.row, term.factor.block(sample, 0, col), rows.depth, cols, false,
                           &term != &shrink.terms[0], c_);
    }
    const float scale = gemm_.scales ? gemm_.scales[sample] : gemm_.scale;
    for (int64_t j = 0; j < cols; ++j)
      shrink.s[row * shrink.rank + col + j] = scale * c_[j];
  }

  // Asks for the rows of the next tile while this one is multiplied: shrink is the first to read the operands.
  void fetch_rows(int64_t begin, int64_t end) const {
    for (size_t i = 0; i < operands_.size(); ++i) {
      const int64_t bytes = gemm_.operands[i].depth * row_bytes_;
      for (int64_t row = begin; row < end; ++row) {
        const char* data = operands_[i].data + (row - begin_) * operands_[i].stride * row_bytes_;
        for (int64_t b = 0; b < bytes; b += 64)
          __builtin_prefetch(data + b, 0, 2);
      }
    }
  }

  // Rounds the current rows of S to bf16, where that is what is multiplied.
  void round_s() {
    if (low_ != Panel::kPairs) return;
    for (size_t i = 0; i < gemm_.shrinks.size(); ++i) {
      const Shrink& shrink = gemm_.shrinks[i];
      for (int64_t row = begin_; row < end_; ++row) {
        kernels_.convert_row(shrink.s + row * shrink.rank, Dtype::kFloat, shrink.rank, true,
                             memory_.rounded_s[i] + (row - begin_) * round_up(shrink.rank, 2) * 2);
      }
    }
  }

  // products = S · E[sample], columns [col, end), for the rows whose factors are read in place.
  void expand_rows_in_place(const Output& output, int64_t col, int64_t end) {
    for (int64_t row = begin_; row < end_;) {
      const int64_t sample = gemm_.segments.find(row);
      const int64_t stop = std::min(end_, gemm_.segments.end(sample));
      if (!modes_.in_place(output.expands, sample)) {
        row = stop;
        continue;
      }
      for (; row < stop; ++row) {
        for (const ExpandTerm& term : output.expands) {
          const Shrink& shrink = gemm_.shrinks[term.shrink];
          kernels_.row_product(shrink.s + row * shrink.rank, term.factor.block(sample, 0, col), shrink.rank, end - col,
                               true, &term != &output.expands[0],
                               memory_.products + (row - begin_) * group_panels_ * kTileCols);
        }
      }
    }
  }

  void expand_panel(const Output& output, int64_t panel, int64_t place) {
    const int64_t col = panel * kTileCols;
    const int cols = std::min<int64_t>(output.cols - col, kTileCols);
    const bool per_sample = any_per_sample(output.expands);
    std::fill(packed_sample_.begin(), packed_sample_.end(), -1);
    if (modes_.by_block) multiply_block(output, panel, place);
    const bool ready = modes_.by_block || (joined_ && panel == 0 && &output == gemm_.outputs.data());
    strips_.clear();
    if (!ready) add_bases(output, panel, begin_);
    const int n_base = strips_.size();
    int64_t rows = 0;
    for (int64_t row = begin_; row < end_; row += rows) {
      float* c = ready ? memory_.block + (row - begin_) * kTileCols : c_;
      strips_.resize(n_base);
      const int64_t sample = per_sample ? gemm_.segments.find(row) : 0;
      const int64_t sample_end = per_sample ? gemm_.segments.end(sample) : end_;
      if (per_sample && is_short(output, row)) {
        rows = short_rows(output, row);
        expand_short(output, row, rows, panel, ready ? -1 : place, n_base, c);
      } else {
        // One call takes as many tiles of the sample as it can.
        const int64_t left = sample_end >= end_ ? end_ - row : (sample_end - row) / kTileRows * kTileRows;
        rows = std::min(left, even_share(left, kMostRows, kTileRows));
        const Destination to = destination(output, row, col);
        add_expands(output, sample, row, col, cols);
        tile()(rows, cols, strips_.data(), n_base, strips_.data() + n_base, strips_.size() - n_base, ready, c, &to);
      }
      for (int i = 0; i < n_base; ++i) {
        strips_[i].rows = static_cast<const char*>(strips_[i].rows) + rows * strips_[i].row_stride * row_bytes_;
      }
    }
  }

  // Whether the sample at `row` has rows in place, or less than a tile from here on.
  bool is_short(const Output& output, int64_t row) const {
    const int64_t sample = gemm_.segments.find(row), sample_end = gemm_.segments.end(sample);
    return sample_end < std::min(end_, row + kTileRows) || modes_.in_place(output.expands, sample);
  }

  // The rows from here on that are multiplied with a weight together: tiles that begin with such a sample.
  int64_t short_rows(const Output& output, int64_t row) const {
    int64_t stop = row;
    do {
      stop = std::min(end_, stop + kTileRows);
    } while (stop < end_ && stop - row < kMostRows && is_short(output, stop));
    return stop - row;
  }

  // Computes rows of several samples: those in place begin with their products, the others get their terms afterwards.
  // Where `place` is negative, c holds already what the rows begin with.
  void expand_short(const Output& output, int64_t row, int64_t rows, int64_t panel, int64_t place, int n_base,
                    float* c) {
    const int64_t col = panel * kTileCols;
    const int cols = std::min<int64_t>(output.cols - col, kTileCols);
    const bool all = modes_.all_in_place(output, row, row + rows);
    const Destination to = destination(output, row, col);
    if (place >= 0) begin_rows(output, row, rows, place, c);
    tile()(rows, cols, strips_.data(), n_base, nullptr, 0, true, c, all ? &to : nullptr);
    for (int64_t start = row; !all && start < row + rows;) {
      const int64_t sample = gemm_.segments.find(start);
      const int64_t stop = std::min(row + rows, gemm_.segments.end(sample));
      const Destination part = destination(output, start, col);
      strips_.resize(n_base);
      if (!modes_.in_place(output.expands, sample)) add_expands(output, sample, start, col, cols);
      tile()(stop - start, cols, nullptr, 0, strips_.data() + n_base, strips_.size() - n_base, true,
             c + (start - row) * kTileCols, &part);
      start = stop;
    }
  }

  // c [rows x 48] = the products of the rows that are in place, zero in the others.
  void begin_rows(const Output& output, int64_t row, int64_t rows, int64_t place, float* c) const {
    for (int64_t i = row; i < row + rows; ++i, c += kTileCols) {
      if (modes_.in_place(output.expands, gemm_.segments.find(i))) {
        std::copy_n(memory_.products + ((i - begin_) * group_panels_ + place) * kTileCols, kTileCols, c);
      } else {
        std::fill_n(c, kTileCols, 0.f);
      }
    }
  }

  // block [rows x 48] = what its rows begin with + Σ bases, for all current rows at once.
  void multiply_block(const Output& output, int64_t panel, int64_t place) {
    begin_rows(output, begin_, end_ - begin_, place, memory_.block);
    strips_.clear();
    add_bases(output, panel, begin_);
    for (const Strip& base : strips_)
      kernels_.block_product(end_ - begin_, base, memory_.block);
  }

  void add_bases(const Output& output, int64_t panel, int64_t row) {
    for (size_t i = 0; i < output.bases.size(); ++i)
      strips_.push_back(strip(output.bases[i].operand, row, base_panels_.find(output, i, panel), kTileCols));
  }

  Destination destination(const Output& output, int64_t row, int64_t col) const {
    char* data = static_cast<char*>(output.data) + (row * output.cols + col) * size_of(gemm_.dtype);
    return {data, output.cols, false, 1.f, output.bias ? output.bias + col : nullptr};
  }

  // Appends the low-rank strips of one sample from `row` on, packing its factors' columns unless they are there.
  void add_expands(const Output& output, int64_t sample, int64_t row, int64_t col, int64_t cols) {
    for (size_t i = 0; i < output.expands.size(); ++i) {
      const auto& [index, factor] = output.expands[i];
      const Shrink& shrink = gemm_.shrinks[index];
      const int64_t owner = factor.batch_stride ? sample : 0;
      if (packed_sample_[i] != owner) {
        kernels_.pack(low_, factor.block(owner, 0, col), shrink.rank, cols, memory_.expand_panels[i], kTileCols);
        packed_sample_[i] = owner;
      }
      const bool rounded = low_ == Panel::kPairs;
      const int64_t stride = rounded ? round_up(shrink.rank, 2) : shrink.rank;
      const char* s = rounded ? memory_.rounded_s[index] + (row - begin_) * stride * 2
                              : reinterpret_cast<const char*>(shrink.s + row * stride);
      strips_.push_back({s, stride, memory_.expand_panels[i], kTileCols, shrink.rank});
    }
  }

  TileFn tile() const { return kernels_.tile[static_cast<int>(gemm_.dtype)]; }

  const LowRankGemm& gemm_;
  const Kernels& kernels_;
  const Panel low_;
  const int64_t row_bytes_;
  const BlockModes modes_;
  // The mode "joined" holds for the current rows.
  bool joined_ = false;
  // S of the current rows is there in bf16.
  bool rounded_ = false;
  const int64_t group_panels_;
  int64_t begin_ = 0;
  int64_t end_ = 0;
  BlockMemory memory_;
  BasePanels base_panels_;
  std::vector<Operand> operands_;
  // The sample whose factor an expand panel holds.
  std::vector<int64_t> packed_sample_;
  std::vector<Strip> strips_;
  // [kMostRows x 48].
  alignas(64) float c_[kMostRows * kTileCols];
};

}  // namespace cora::cpu
