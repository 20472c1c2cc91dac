#include "attention.h"

#include <ATen/Parallel.h>

#include <vector>

#include "lowrank_gemm.h"
#include "scratch.h"

namespace cora::cpu {
namespace {

// What it costs to pack a sample beside its products, in keys. Samples are shared out among threads by that.
constexpr int64_t kPackingCost = 128;

// An AttentionWorker works off (sample, kv_head) pairs over the thread's scratch memory, which the longest sample
// sizes.
class AttentionWorker {
 public:
  AttentionWorker(const Attention& attention, const Kernels& kernels, int64_t longest, bool backward)
      : a_(attention),
        kernels_(kernels),
        low_(low_panel(attention.dtype, kernels)),
        row_dtype_(low_ == Panel::kPairs ? Dtype::kBFloat16 : Dtype::kFloat),
        group_(attention.heads / attention.kv_heads),
        // A stride off the powers of two: else the rows of a panel would share few sets of L1.
        length_stride_(round_up(longest, 16) + 16),
        dim_stride_(round_up(attention.dim, 16)) {
    Scratch& scratch = Scratch::of_thread(carve(nullptr, longest, backward));
    carve(&scratch, longest, backward);
  }

  void forward(int64_t sample, int64_t kv_head, void* out) {
    begin(sample);
    pack_turned(head(a_.k, kv_head), k_.turned);
    pack(head(a_.v, kv_head), v_.plain);
    for (int64_t h = kv_head * group_; h < (kv_head + 1) * group_; ++h) {
      for (int64_t row = 0; row < length_; row += kTileRows) {
        const int64_t rows = std::min<int64_t>(kTileRows, length_ - row), cols = row + rows;
        convert(head(a_.q, h), row, rows, q_rows_);
        product(rows, cols, q_rows_, k_.turned, s_, a_.scale);
        for (int64_t m = 0; m < rows; ++m) {
          kernels_.softmax(s_ + m * length_stride_, row + m + 1, cols, row_dtype_, line(p_[0], m), tops(h) + row + m,
                           shares(h) + row + m);
        }
        const Strip strip{p_[0], length_stride_, v_.plain, dim_stride_, cols};
        multiply(rows, &strip, 1, destination(out, a_.heads, h, row, 1.f));
      }
    }
  }

  void backward(int64_t sample, int64_t kv_head, const Heads& g, void* dq, void* dk, void* dv) {
    begin(sample);
    pack_turned(head(a_.k, kv_head), k_.turned);
    pack(head(a_.k, kv_head), k_.plain);
    pack_turned(head(a_.v, kv_head), v_.turned);
    for (int64_t i = 0; i < group_; ++i) {
      const int64_t h = kv_head * group_ + i;
      pack_turned(head(a_.q, h), q_[i].turned);
      pack(head(a_.q, h), q_[i].plain);
      pack_turned(head(g, h), g_[i].turned);
      pack(head(g, h), g_[i].plain);
      std::copy_n(tops(h), length_, top_[i]);
      std::copy_n(shares(h), length_, share_[i]);
      for (int64_t row = 0; row < length_; row += kTileRows)
        by_queries(h, i, row, head(g, h), dq);
    }
    for (int64_t row = 0; row < length_; row += kTileRows)
      by_keys(kv_head, row, dk, dv);
  }

 private:
  // A sample's [length x dim], packed twice: as it is, the inner factor of products with P or dS; and turned, that of
  // products with rows of q, k, v or g.
  struct Panels {
    char* plain;
    char* turned;
  };

  int64_t carve(Scratch* scratch, int64_t longest, bool backward) {
    int64_t bytes = 0;
    const auto take = [&](int64_t size) {
      bytes += Scratch::padded(size);
      return scratch ? scratch->take(size) : nullptr;
    };
    const auto floats = [&](int64_t count) { return reinterpret_cast<float*>(take(count * 4)); };
    const auto panels = [&] {
      return Panels{take(panel_bytes(low_, longest, dim_stride_)), take(panel_bytes(low_, a_.dim, length_stride_))};
    };
    k_ = panels();
    v_ = panels();
    q_rows_ = take(kTileRows * dim_stride_ * 4);
    g_rows_ = take(kTileRows * dim_stride_ * 4);
    s_ = floats(kTileRows * length_stride_);
    dp_ = floats(kTileRows * length_stride_);
    for (auto* list : {&p_, &ds_}) {
      list->clear();
      for (int64_t i = 0; i < (backward ? group_ : 1); ++i)
        list->push_back(take(kTileRows * length_stride_ * 4));
    }
    for (auto* list : {&top_, &share_, &delta_}) {
      list->clear();
      for (int64_t i = 0; i < (backward ? group_ : 0); ++i)
        list->push_back(floats(length_stride_));
    }
    for (auto* list : {&q_, &g_}) {
      list->clear();
      for (int64_t i = 0; i < (backward ? group_ : 0); ++i)
        list->push_back(panels());
    }
    return bytes;
  }

  void begin(int64_t sample) {
    begin_ = a_.segments.begin(sample);
    length_ = a_.segments.end(sample) - begin_;
  }

  // Computes dS of eight queries, from it their dq, and the delta that by_keys needs.
  void by_queries(int64_t h, int64_t i, int64_t row, const Rows& g, void* dq) {
    const int64_t rows = std::min<int64_t>(kTileRows, length_ - row), cols = row + rows;
    convert(head(a_.q, h), row, rows, q_rows_);
    convert(g, row, rows, g_rows_);
    product(rows, cols, q_rows_, k_.turned, s_, a_.scale);
    product(rows, cols, g_rows_, v_.turned, dp_, 1.f);
    for (int64_t m = 0; m < rows; ++m) {
      delta_[i][row + m] =
          kernels_.softmax_backward(s_ + m * length_stride_, dp_ + m * length_stride_, top_[i][row + m],
                                    share_[i][row + m], row + m + 1, cols, row_dtype_, line(ds_[0], m));
    }
    const Strip strip{ds_[0], length_stride_, k_.plain, dim_stride_, cols};
    multiply(rows, &strip, 1, destination(dq, a_.heads, h, row, a_.scale));
  }

  // Computes dk and dv of eight keys, from the queries of all heads that attend to them.
  void by_keys(int64_t kv_head, int64_t row, void* dk, void* dv) {
    const int64_t rows = std::min<int64_t>(kTileRows, length_ - row), cols = length_ - row;
    convert(head(a_.k, kv_head), row, rows, q_rows_);
    convert(head(a_.v, kv_head), row, rows, g_rows_);
    p_strips_.clear();
    ds_strips_.clear();
    for (int64_t i = 0; i < group_; ++i) {
      product(rows, cols, q_rows_, q_[i].turned + row * 4, s_, a_.scale);
      product(rows, cols, g_rows_, g_[i].turned + row * 4, dp_, 1.f);
      for (int64_t m = 0; m < rows; ++m) {
        kernels_.softmax_backward_turned(s_ + m * length_stride_, dp_ + m * length_stride_, top_[i] + row,
                                         share_[i] + row, delta_[i] + row, m, cols, row_dtype_, line(p_[i], m),
                                         line(ds_[i], m));
      }
      const int64_t above = panel_bytes(low_, row, dim_stride_);
      p_strips_.push_back({p_[i], length_stride_, g_[i].plain + above, dim_stride_, cols});
      ds_strips_.push_back({ds_[i], length_stride_, q_[i].plain + above, dim_stride_, cols});
    }
    multiply(rows, p_strips_.data(), group_, destination(dv, a_.kv_heads, kv_head, row, 1.f));
    multiply(rows, ds_strips_.data(), group_, destination(dk, a_.kv_heads, kv_head, row, a_.scale));
  }

  // What the softmax of head h needs, from the sample's first row on; and below, the rows of q, k, v or g themselves.
  float* tops(int64_t h) const { return a_.sums + h * a_.segments.rows + begin_; }
  float* shares(int64_t h) const { return tops(a_.heads + h); }

  Rows head(const Heads& heads, int64_t h) const {
    const int64_t first = begin_ * heads.row_stride + h * heads.head_stride;
    return {static_cast<const char*>(heads.data) + first * size_of(a_.dtype), heads.row_stride, a_.dim};
  }

  void pack(const Rows& rows, char* to) const {
    kernels_.pack(low_, {rows.data, a_.dtype, rows.stride, 1}, length_, a_.dim, to, dim_stride_);
  }

  void pack_turned(const Rows& rows, char* to) const {
    kernels_.pack(low_, {rows.data, a_.dtype, 1, rows.stride}, a_.dim, length_, to, length_stride_);
  }

  void convert(const Rows& from, int64_t row, int64_t rows, char* to) const {
    for (int64_t m = 0; m < rows; ++m) {
      const char* source = static_cast<const char*>(from.data) + (row + m) * from.stride * size_of(a_.dtype);
      kernels_.convert_row(source, a_.dtype, a_.dim, low_ == Panel::kPairs, to + m * dim_stride_ * size_of(row_dtype_));
    }
  }

  // Row m of P or dS.
  char* line(char* rows, int64_t m) const { return rows + m * length_stride_ * size_of(row_dtype_); }

  // to [rows x length_stride_] = scale · rows · turned, `cols` columns.
  void product(int64_t rows, int64_t cols, const char* left, const char* turned, float* to, float scale) const {
    const Strip strip{left, dim_stride_, turned, length_stride_, a_.dim};
    const Destination destination{to, length_stride_, true, scale, nullptr};
    run_tile(rows, cols, &strip, 1, destination);
  }

  void multiply(int64_t rows, const Strip* strips, int count, const Destination& to) const {
    run_tile(rows, a_.dim, strips, count, to);
  }

  void run_tile(int64_t rows, int64_t cols, const Strip* strips, int count, const Destination& to) const {
    // With a destination the tile itself, here s_, is neither read nor written.
    kernels_.tile[static_cast<int>(a_.dtype)](rows, cols, nullptr, 0, strips, count, false, s_, &to);
  }

  // Rows from `row` of the sample on, of one of `heads` heads.
  Destination destination(void* out, int64_t heads, int64_t h, int64_t row, float scale) const {
    const int64_t first = ((begin_ + row) * heads + h) * a_.dim;
    return {static_cast<char*>(out) + first * size_of(a_.dtype), heads * a_.dim, false, scale, nullptr};
  }

  const Attention& a_;
  const Kernels& kernels_;
  const Panel low_;
  const Dtype row_dtype_;
  const int64_t group_, length_stride_, dim_stride_;
  int64_t begin_ = 0, length_ = 0;
  Panels k_, v_;
  char *q_rows_, *g_rows_;
  float *s_, *dp_;
  std::vector<char*> p_, ds_;
  // One for each head of the group: a number for every query, and room past the end, where there is none.
  std::vector<float*> top_, share_, delta_;
  std::vector<Panels> q_, g_;
  std::vector<Strip> p_strips_, ds_strips_;
};

// Calls work(worker, sample, kv_head) for all pairs, shared out so that all threads have the same work.
template <class Work>
void for_pairs(const Attention& attention, const Kernels& kernels, bool backward, const Work& work) {
  const Segments& segments = attention.segments;
  const auto length = [&](int64_t sample) { return segments.end(sample) - segments.begin(sample); };
  const auto cost = [&](int64_t sample) { return length(sample) * (length(sample) + kPackingCost); };
  int64_t longest = 0, total = 0;
  for (int64_t sample = 0; sample < segments.batch; ++sample) {
    longest = std::max(longest, length(sample));
    total += attention.kv_heads * cost(sample);
  }
  const int64_t shares = at::get_num_threads();
  at::parallel_for(0, shares, 1, [&](int64_t first, int64_t last) {
    AttentionWorker worker(attention, kernels, longest, backward);
    int64_t done = 0;
    for (int64_t kv_head = 0; kv_head < attention.kv_heads; ++kv_head) {
      for (int64_t sample = 0; sample < segments.batch; ++sample) {
        if (length(sample) == 0) continue;
        const double share = double(done) / total * shares;
        if (share >= first && share < last) work(worker, sample, kv_head);
        done += cost(sample);
      }
    }
  });
}

}  // namespace

void run_forward(const Attention& attention, void* out, const Kernels& kernels) {
  for_pairs(attention, kernels, false,
            [&](AttentionWorker& worker, int64_t sample, int64_t kv_head) { worker.forward(sample, kv_head, out); });
}

void run_backward(const Attention& attention, const Heads& g, void* dq, void* dk, void* dv, const Kernels& kernels) {
  for_pairs(attention, kernels, true, [&](AttentionWorker& worker, int64_t sample, int64_t kv_head) {
    worker.backward(sample, kv_head, g, dq, dk, dv);
  });
}

}  // namespace cora::cpu
