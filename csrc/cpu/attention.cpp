#include "attention.h"

#include <ATen/Parallel.h>

#include <vector>

#include "families.h"
#include "lowrank_gemm.h"
#include "scratch.h"

namespace cora::cpu {
namespace {

// The backward keeps P and dS of a block of queries, for all keys that these see: both are multiplied once by queries
// and once by keys. So many elements of each, about, stay in L2 for all heads of a group; a prompt is one block.
constexpr int64_t kKept = 1 << 16;

int64_t most_queries(int64_t keys) {
  return std::clamp<int64_t>(round_up(kKept / std::max<int64_t>(keys, 1), kTileRows), 32, 256);
}

// An AttentionWorker works off samples, one kv_head at a time, over the thread's scratch memory.
class AttentionWorker {
 public:
  AttentionWorker(const Attention& attention, const Kernels& kernels, const Longest& longest, bool backward)
      : a_(attention),
        kernels_(kernels),
        low_(low_panel(attention.dtype, kernels)),
        row_dtype_(low_ == Panel::kPairs ? Dtype::kBFloat16 : Dtype::kFloat),
        group_(attention.heads / attention.kv_heads),
        keys_stride_(padded(longest.keys)),
        dim_stride_(round_up(attention.dim, 16)) {
    Scratch& scratch = Scratch::of_thread(carve(nullptr, longest, backward));
    carve(&scratch, longest, backward);
  }

  void forward(const Member& member, int64_t kv_head, void* out) {
    begin(member, kv_head, false);
    for (int64_t h = kv_head * group_; h < (kv_head + 1) * group_; ++h) {
      for (int64_t row = 0; row < own_->length; row += kTileRows) {
        const int64_t rows = std::min<int64_t>(kTileRows, own_->length - row);
        convert(head(a_.q, h, *own_), row, rows, q_rows_);
        scores(rows, row + rows, q_rows_, &Keys::k, s_, a_.scale);
        for (int64_t m = 0; m < rows; ++m) {
          kernels_.softmax(s_ + m * keys_stride_, before_ + row + m + 1, width(row + rows), row_dtype_, line(p_, m),
                           tops(h) + row + m, shares(h) + row + m);
        }
        weigh(rows, row + rows, p_, &Keys::v, destination(out, a_.heads, h, *own_, row, 1.f));
      }
    }
  }

  // A family: one sample, or a parent and its children, whose part in its gradients is summed in their order.
  void backward(const Families::Range& family, int64_t kv_head, const Heads& g, void* dq, void* dk, void* dv) {
    for (const Member* member = family.first; member != family.second; ++member) {
      if (length(member->sample) == 0) continue;
      begin(*member, kv_head, true);
      for (int64_t i = 0; i < group_; ++i) {
        pack(head(a_.q, kv_head * group_ + i, *own_), own_->length, q_[i]);
        pack(head(g, kv_head * group_ + i, *own_), own_->length, g_[i]);
      }
      const int64_t block = even_share(own_->length, most_queries(before_ + own_->length), kTileRows);
      turned_stride_ = padded(block);
      const bool collects = member->is_parent || own_->length > block;
      for (int64_t first = 0; first < own_->length; first += block) {
        const int64_t last = std::min(first + block, own_->length);
        for (int64_t i = 0; i < group_; ++i) {
          for (int64_t row = first; row < last; row += kTileRows)
            by_queries(kv_head * group_ + i, i, row, row - first, g, dq);
        }
        for (int64_t row = 0; row < last; row += kTileRows) {
          const int64_t rows = by_keys(*own_, before_ + row, row, first, std::max(first, row), last);
          if (collects) {
            collect(*own_, row, rows, row < first);
          } else {
            run_tile(rows, a_.dim, p_strips_.data(), group_, destination(dv, a_.kv_heads, kv_head, *own_, row, 1.f));
            run_tile(rows, a_.dim, ds_strips_.data(), group_,
                     destination(dk, a_.kv_heads, kv_head, *own_, row, a_.scale));
          }
        }
        for (int64_t row = 0; row < before_; row += kTileRows)
          collect(prefix_, row, by_keys(prefix_, row, row, first, first, last), true);
      }
      if (collects && !member->is_parent) deliver(*own_, kv_head, dk, dv);
    }
    if (family.first->is_parent && length(family.first->sample) > 0) deliver(prefix_, kv_head, dk, dv);
  }

 private:
  // A sample's [length x dim], packed twice: as it is, the inner factor of products with P or dS; and turned, that of
  // products with rows of q, k, v or g.
  struct Panels {
    char* plain;
    char* turned;
  };

  // The keys and values of one sample, and the gradients of both where they come together block by block.
  struct Keys {
    int64_t sample = -1, kv_head = -1, begin = 0, length = 0;
    Panels k{}, v{};
    float *dk = nullptr, *dv = nullptr;
  };

  // A stride off the powers of two: else the rows of a panel would share few sets of L1. The room past the end is read
  // in whole vectors.
  static int64_t padded(int64_t length) { return round_up(length, 16) + 16; }

  int64_t carve(Scratch* scratch, const Longest& longest, bool backward) {
    int64_t bytes = 0;
    const auto take = [&](int64_t size) {
      bytes += Scratch::padded(size);
      return scratch ? scratch->take(size) : nullptr;
    };
    const auto floats = [&](int64_t count) { return reinterpret_cast<float*>(take(count * 4)); };
    const auto panels = [&](int64_t length) {
      return Panels{take(panel_bytes(low_, length, dim_stride_)), take(panel_bytes(low_, a_.dim, padded(length)))};
    };
    for (auto [keys, most, collects] : {std::tuple{&alone_, longest.own, longest.own > most_queries(longest.keys)},
                                        std::tuple{&prefix_, longest.prefix, true}}) {
      keys->k = panels(most);
      keys->v = panels(most);
      const int64_t sums = backward && collects ? round_up(most, kTileRows) * panels_of(a_.dim) * kTileCols : 0;
      keys->dk = floats(sums);
      keys->dv = floats(sums);
    }
    q_rows_ = take(kTileRows * dim_stride_ * 4);
    g_rows_ = take(kTileRows * dim_stride_ * 4);
    s_ = floats(kTileRows * keys_stride_);
    dp_ = floats(kTileRows * keys_stride_);
    p_ = take(kTileRows * keys_stride_ * 4);
    ds_ = take(kTileRows * keys_stride_ * 4);
    // Of blocks of any size: padded(most_queries(keys)) · keys is less for all keys up to the most.
    const int64_t kept = kKept + 64 * longest.keys;
    for (auto* list : {&p_turned_, &ds_turned_}) {
      list->clear();
      for (int64_t i = 0; i < (backward ? group_ : 0); ++i)
        list->push_back(take(kept * size_of(row_dtype_)));
    }
    for (auto* list : {&q_, &g_}) {
      list->clear();
      for (int64_t i = 0; i < (backward ? group_ : 0); ++i)
        list->push_back(take(panel_bytes(low_, longest.own, dim_stride_)));
    }
    return bytes;
  }

  int64_t length(int64_t sample) const { return a_.segments.end(sample) - a_.segments.begin(sample); }

  // Packs what the member's queries see. A parent stays packed for all its children.
  void begin(const Member& member, int64_t kv_head, bool backward) {
    before_ = member.parent < 0 ? 0 : length(member.parent);
    if (before_ > 0) load(prefix_, member.parent, kv_head, backward);
    own_ = member.is_parent ? &prefix_ : &alone_;
    load(*own_, member.sample, kv_head, backward);
  }

  void load(Keys& keys, int64_t sample, int64_t kv_head, bool backward) {
    if (keys.sample == sample && keys.kv_head == kv_head) return;
    keys.sample = sample;
    keys.kv_head = kv_head;
    keys.begin = a_.segments.begin(sample);
    keys.length = length(sample);
    const Rows k = head(a_.k, kv_head, keys), v = head(a_.v, kv_head, keys);
    pack_turned(k, keys.length, keys.k.turned);
    if (backward) {
      pack(k, keys.length, keys.k.plain);
      pack_turned(v, keys.length, keys.v.turned);
    } else {
      pack(v, keys.length, keys.v.plain);
    }
  }

  // Computes dS of eight queries and from it their dq, and turns P and dS: as columns from `to` on, a row for each key.
  void by_queries(int64_t h, int64_t i, int64_t row, int64_t to, const Heads& g, void* dq) {
    const int64_t rows = std::min<int64_t>(kTileRows, own_->length - row), end = row + rows;
    convert(head(a_.q, h, *own_), row, rows, q_rows_);
    convert(head(g, h, *own_), row, rows, g_rows_);
    scores(rows, end, q_rows_, &Keys::k, s_, a_.scale);
    scores(rows, end, g_rows_, &Keys::v, dp_, 1.f);
    for (int64_t m = 0; m < rows; ++m) {
      kernels_.softmax_backward(s_ + m * keys_stride_, dp_ + m * keys_stride_, tops(h)[row + m], shares(h)[row + m],
                                before_ + row + m + 1, width(end), row_dtype_, line(p_, m), line(ds_, m));
    }
    weigh(rows, end, ds_, &Keys::k, destination(dq, a_.heads, h, *own_, row, a_.scale));
    for (auto [from, turned] : {std::pair{p_, p_turned_[i]}, std::pair{ds_, ds_turned_[i]}}) {
      kernels_.turn(from, keys_stride_, rows, before_ + end, row_dtype_, turned + to * size_of(row_dtype_),
                    turned_stride_);
    }
  }

  // The strips of eight keys from `row` on, whose P and dS begin at row `at` of those turned, and the queries
  // [first, last) of all heads, in a block that begins at `block`. Products with p_strips_ and ds_strips_ are the keys'
  // dv and dk. Returns how many keys there are.
  int64_t by_keys(const Keys& keys, int64_t at, int64_t row, int64_t block, int64_t first, int64_t last) {
    const int64_t offset = (at * turned_stride_ + first - block) * size_of(row_dtype_);
    const int64_t above = panel_bytes(low_, first, dim_stride_);
    p_strips_.clear();
    ds_strips_.clear();
    for (int64_t i = 0; i < group_; ++i) {
      p_strips_.push_back({p_turned_[i] + offset, turned_stride_, g_[i] + above, dim_stride_, last - first});
      ds_strips_.push_back({ds_turned_[i] + offset, turned_stride_, q_[i] + above, dim_stride_, last - first});
    }
    return std::min<int64_t>(kTileRows, keys.length - row);
  }

  // The gradients of keys, in blocks of a tile each, as the queries that see them come by: other blocks of their own,
  // or those of the sample's children.
  void collect(const Keys& keys, int64_t row, int64_t rows, bool add) {
    for (int64_t col = 0; col < a_.dim; col += kTileCols) {
      const int64_t cols = std::min<int64_t>(kTileCols, a_.dim - col);
      for (auto [strips, sums] : {std::pair{&p_strips_, keys.dv}, std::pair{&ds_strips_, keys.dk}}) {
        tile()(rows, cols, nullptr, 0, strips->data(), group_, add, block(sums, row, col), nullptr);
        for (Strip& strip : *strips)
          strip.panel = static_cast<const char*>(strip.panel) + kTileCols * 4;
      }
    }
  }

  // Writes what was collected.
  void deliver(const Keys& keys, int64_t kv_head, void* dk, void* dv) const {
    for (int64_t row = 0; row < keys.length; row += kTileRows) {
      const int64_t rows = std::min<int64_t>(kTileRows, keys.length - row);
      for (int64_t col = 0; col < a_.dim; col += kTileCols) {
        const int64_t cols = std::min<int64_t>(kTileCols, a_.dim - col);
        for (auto [sums, out, scale] : {std::tuple{keys.dv, dv, 1.f}, std::tuple{keys.dk, dk, a_.scale}}) {
          Destination to = destination(out, a_.kv_heads, kv_head, keys, row, scale);
          to.data = static_cast<char*>(to.data) + col * size_of(a_.dtype);
          tile()(rows, cols, nullptr, 0, nullptr, 0, true, block(sums, row, col), &to);
        }
      }
    }
  }

  float* block(float* sums, int64_t row, int64_t col) const {
    return sums + (row * panels_of(a_.dim) + kTileRows * (col / kTileCols)) * kTileCols;
  }

  // What the softmax of head h needs, from the sample's first row on; and below, the rows of q, k, v or g themselves.
  float* tops(int64_t h) const { return a_.sums + h * a_.segments.rows + own_->begin; }
  float* shares(int64_t h) const { return tops(a_.heads + h); }

  Rows head(const Heads& heads, int64_t h, const Keys& of) const {
    const int64_t first = of.begin * heads.row_stride + h * heads.head_stride;
    return {static_cast<const char*>(heads.data) + first * size_of(a_.dtype), heads.row_stride, a_.dim};
  }

  void pack(const Rows& rows, int64_t length, char* to) const {
    kernels_.pack(low_, {rows.data, a_.dtype, rows.stride, 1}, length, a_.dim, to, dim_stride_);
  }

  void pack_turned(const Rows& rows, int64_t length, char* to) const {
    kernels_.pack(low_, {rows.data, a_.dtype, 1, rows.stride}, a_.dim, length, to, padded(length));
  }

  void convert(const Rows& from, int64_t row, int64_t rows, char* to) const {
    for (int64_t m = 0; m < rows; ++m) {
      const char* source = static_cast<const char*>(from.data) + (row + m) * from.stride * size_of(a_.dtype);
      kernels_.convert_row(source, a_.dtype, a_.dim, low_ == Panel::kPairs, to + m * dim_stride_ * size_of(row_dtype_));
    }
  }

  // Row m of P or dS.
  char* line(char* rows, int64_t m) const { return rows + m * keys_stride_ * size_of(row_dtype_); }

  // The columns of P and dS that are multiplied, for queries that see `end` keys of their own. Where the parent has an
  // odd number of keys, these begin in the middle of a pair of columns, and their last pair may end in one more column,
  // which must be zero.
  int64_t width(int64_t end) const { return before_ + end + before_ % 2; }

  // to [rows x keys_stride_] = scale · left · (the parent's keys, then the sample's own up to `end`)ᵀ.
  void scores(int64_t rows, int64_t end, const char* left, Panels Keys::* factor, float* to, float scale) const {
    if (before_ > 0) product(rows, before_, left, (prefix_.*factor).turned, padded(before_), to, scale);
    product(rows, end, left, (own_->*factor).turned, padded(own_->length), to + before_, scale);
  }

  // to = P or dS · (the parent's rows, then the sample's own up to `end`).
  void weigh(int64_t rows, int64_t end, const char* p, Panels Keys::* factor, const Destination& to) const {
    const char* own = p + before_ * size_of(row_dtype_);
    const Strip strips[] = {{p, keys_stride_, (prefix_.*factor).plain, dim_stride_, before_},
                            {own, keys_stride_, (own_->*factor).plain, dim_stride_, end}};
    run_tile(rows, a_.dim, before_ > 0 ? strips : strips + 1, before_ > 0 ? 2 : 1, to);
  }

  // to [rows x keys_stride_] = scale · left · turned, `cols` columns.
  void product(int64_t rows, int64_t cols, const char* left, const char* turned, int64_t stride, float* to,
               float scale) const {
    const Strip strip{left, dim_stride_, turned, stride, a_.dim};
    const Destination destination{to, keys_stride_, true, scale, nullptr};
    run_tile(rows, cols, &strip, 1, destination);
  }

  TileFn tile() const { return kernels_.tile[static_cast<int>(a_.dtype)]; }

  void run_tile(int64_t rows, int64_t cols, const Strip* strips, int count, const Destination& to) const {
    // With a destination the tile itself, here s_, is neither read nor written.
    tile()(rows, cols, nullptr, 0, strips, count, false, s_, &to);
  }

  // Rows from `row` of a sample on, of one of `heads` heads.
  Destination destination(void* out, int64_t heads, int64_t h, const Keys& of, int64_t row, float scale) const {
    const int64_t first = ((of.begin + row) * heads + h) * a_.dim;
    return {static_cast<char*>(out) + first * size_of(a_.dtype), heads * a_.dim, false, scale, nullptr};
  }

  const Attention& a_;
  const Kernels& kernels_;
  const Panel low_;
  const Dtype row_dtype_;
  const int64_t group_, keys_stride_, dim_stride_;
  Keys alone_, prefix_;
  // The sample in work, one of these two, and how many keys of its parent come before its own.
  Keys* own_ = nullptr;
  int64_t before_ = 0;
  // Of p_turned_ and ds_turned_, for blocks of that sample.
  int64_t turned_stride_ = 0;
  // Eight rows of what they are called by.
  char *q_rows_, *g_rows_, *p_, *ds_;
  float *s_, *dp_;
  // One for each head of the group: P and dS of a block of queries, a row for each key; q and g of the sample.
  std::vector<char*> p_turned_, ds_turned_, q_, g_;
  std::vector<Strip> p_strips_, ds_strips_;
};

// Calls work(worker, range, kv_head) for all samples, one by one or by families, shared out so that all threads
// have the same work.
template <class Work>
void for_members(const Attention& attention, const Kernels& kernels, bool backward, const Work& work) {
  const Families families(attention.segments, attention.parents);
  const int64_t units = backward ? families.count() : families.members.size();
  const auto members = [&](int64_t unit) { return backward ? families.family(unit) : families.member(unit); };
  const int64_t shares = at::get_num_threads();
  at::parallel_for(0, shares, 1, [&](int64_t first, int64_t last) {
    AttentionWorker worker(attention, kernels, families.longest, backward);
    int64_t done = 0;
    for (int64_t kv_head = 0; kv_head < attention.kv_heads; ++kv_head) {
      for (int64_t unit = 0; unit < units; ++unit) {
        const Families::Range range = members(unit);
        const int64_t cost = Families::cost(range);
        if (cost == 0) continue;
        const double share = double(done) / (attention.kv_heads * families.total_cost) * shares;
        if (share >= first && share < last) work(worker, range, kv_head);
        done += cost;
      }
    }
  });
}

}  // namespace

void run_forward(const Attention& attention, void* out, const Kernels& kernels) {
  for_members(attention, kernels, false, [&](AttentionWorker& worker, const Families::Range& range, int64_t kv_head) {
    worker.forward(*range.first, kv_head, out);
  });
}

void run_backward(const Attention& attention, const Heads& g, void* dq, void* dk, void* dv, const Kernels& kernels) {
  for_members(attention, kernels, true, [&](AttentionWorker& worker, const Families::Range& range, int64_t kv_head) {
    worker.backward(range, kv_head, g, dq, dk, dv);
  });
}

}  // namespace cora::cpu
