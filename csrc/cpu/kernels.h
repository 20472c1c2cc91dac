// The table of micro-kernels of one instruction set, and the choice among them at run time.
#pragma once

#include "types.h"

namespace cora::cpu {

// (add ? c : 0) + Σ base strips + Σ low strips, in fp32, in this order, for any rows: to c [rows x 48], or, where `to`
// is not null, there; sums of base strips may wait in c meanwhile. At most 48 columns where c or a base strip is read
// or written, else any number. Panels are padded: c gets columns up to the next full vector.
using TileFn = void (*)(int rows, int cols, const Strip* base, int n_base, const Strip* low, int n_low, bool add,
                        float* c, const Destination* to);

// c [rows x 48] = Σ base strips, and s [rows x rank <= 16] = scale · Σ low strips, whose panels are 16 wide: one pass
// over the same n row operands.
using JointFn = void (*)(int rows, const Strip* base, const Strip* low, int n, float scale, float* c, float* s,
                         int64_t s_stride, int64_t rank);

// c [narrow_cols x 48] = (add ? c : 0) + narrowᵀ · wide, over `depth` rows: those of wide, bf16, are read in place, at
// most 48 columns of them, and narrow is packed in pairs. The columns that will be read next are `ahead` elements off.
using OuterFn = void (*)(const void* narrow, int64_t narrow_stride, int64_t narrow_cols, const void* wide,
                         int64_t wide_stride, int64_t ahead, int64_t depth, int64_t cols, bool add, float* c);

struct Kernels {
  const char* name;
  // bf16 rows are multiplied as bf16 pairs (vdpbf16ps), not widened to fp32.
  bool bf16_pairs;
  // One for each dtype of x: the base strips hold W packed in that dtype, the low strips are in fp32, or in bf16 pairs
  // where bf16_pairs holds and x is bf16.
  TileFn tile[3];
  // Null where there are no bf16 pairs.
  JointFn joint;
  OuterFn outer;
  // out [cols] = (add ? out : 0) + row [depth] · factor [depth x cols], the factor read in place: its columns are
  // contiguous. by_row: its rows are streamed a few at a time, for few long ones; else they are read together, 48
  // columns at a time.
  void (*row_product)(const float* row, const Matrix& factor, int64_t depth, int64_t cols, bool by_row, bool add,
                      float* out);
  // c [rows x 48] += strip, in bf16 pairs, for any number of rows: by matrix units that want more rows than a tile has,
  // null where there are none. release gives them back at the end of a thread's work.
  void (*block_product)(int64_t rows, const Strip& strip, float* c);
  void (*release)();
  // Packs src [depth x cols], cols <= 48, into dst; columns up to panel_stride are zero.
  void (*pack)(Panel kind, const Matrix& src, int64_t depth, int64_t cols, void* dst, int64_t panel_stride);
  // Copies `cols` elements into fp32, or rounds them to bf16 if to_bf16; zeroes up to the next even column.
  void (*convert_row)(const void* src, Dtype dtype, int64_t cols, bool to_bf16, void* dst);
  // dst [cols] = c, rounded to dtype.
  void (*store_row)(const float* c, int64_t cols, Dtype dtype, void* dst);
  // dst [q x p] = the transpose of c [p x 48 (q of them)], rounded to dtype.
  void (*store_transposed)(const float* c, int64_t p, int64_t q, Dtype dtype, void* dst, int64_t dst_stride);
  // p = share · e^(s − top) of the first `cols` of s, in dtype, zero up to the full vector past `width`; top is the
  // largest and share makes the sum 1. s is overwritten.
  void (*softmax)(float* s, int64_t cols, int64_t width, Dtype dtype, void* p, float* top, float* share);
  // That p, and ds = p ∘ (dp − delta) with delta = Σ p ∘ dp; else as softmax.
  void (*softmax_backward)(float* s, const float* dp, float top, float share, int64_t cols, int64_t width, Dtype dtype,
                           void* p, void* ds);
  // to [cols x 8] = the transpose of rows [count <= 8 x cols], fp32 or bf16, with zeros for the rows that are missing.
  // Past `cols` the rows are read up to a full vector.
  void (*turn)(const void* rows, int64_t stride, int64_t count, int64_t cols, Dtype dtype, void* to, int64_t to_stride);
  // y = scale · x ∘ weight for one row, scale = 1 / sqrt(mean(x²) + eps), which is returned; and dx of its gradient g.
  float (*rms_norm)(const void* x, const void* weight, Dtype dtype, int64_t cols, float eps, void* y);
  void (*rms_norm_backward)(const void* g, const void* x, const void* weight, Dtype dtype, int64_t cols, float scale,
                            void* dx);
  // out = gate · sigmoid(gate) · up, element by element; and the gradients of both.
  void (*silu_gate)(const void* gate, const void* up, Dtype dtype, int64_t n, void* out);
  void (*silu_gate_backward)(const void* g, const void* gate, const void* up, Dtype dtype, int64_t n, void* dgate,
                             void* dup);
  // y = (a∘c₁ − b∘s₁, b∘c₂ + a∘s₂) of every head (a, b) of a row x, `half` wide each, of cos (c₁, c₂) and sin (s₁, s₂);
  // or, backward, dx of its gradient. The heads of y lie one after another.
  void (*rotary)(const void* x, int64_t head_stride, const void* cos, const void* sin, Dtype dtype, int64_t heads,
                 int64_t half, bool backward, void* y);
};

// The best table this machine runs, or the one named, or null: "avx2", "avx512", "avx512_bf16", "amx".
const Kernels* find_kernels(const char* name = nullptr);

// Sets the table that calls use from now on; null: the best again.
void choose_kernels(const Kernels* kernels);

// The table that calls use; null where this machine runs none.
const Kernels* chosen_kernels();

}  // namespace cora::cpu
