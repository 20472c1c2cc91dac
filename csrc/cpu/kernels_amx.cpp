// AMX through PyTorch's own micro-kernels (oneDNN's brgemm), which program the tile unit; the rest is AVX-512.
#include <ATen/Context.h>
#include <ATen/native/CPUBlas.h>

#include "kernel_tables.h"

namespace cora::cpu {
namespace {

void block_product(int64_t rows, const Strip& strip, float* c) {
  const auto* x = static_cast<const at::BFloat16*>(strip.rows);
  const auto* panel = static_cast<const at::BFloat16*>(strip.panel);
  at::native::cpublas::brgemm(rows, kTileCols, round_up(strip.depth, 2), strip.row_stride, kTileCols, kTileCols, true,
                              x, panel, c);
}

}  // namespace

Kernels with_amx(Kernels kernels) {
  kernels.name = "amx";
  kernels.block_product = block_product;
  kernels.release = [] { at::native::cpublas::brgemm_release(); };
  return kernels;
}

bool brgemm_usable() { return at::globalContext().userEnabledMkldnn(); }

}  // namespace cora::cpu
