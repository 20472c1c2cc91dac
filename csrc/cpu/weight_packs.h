// The packed copies of weights whose owners asked for them: once per weight, direction and kind, for as long as the
// weight has the same memory and is not seen to change. Of other weights nothing is kept: panels.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "kernels.h"

namespace cora::cpu {

// From now on the weight's packs are kept; the number by which forget_packed knows it. Asked twice, to be released
// twice.
int64_t keep_packed(const at::Tensor& weight);
// Frees the packs, unless somebody else still has them kept; that number if so it did.
std::optional<int64_t> release_packed(const at::Tensor& weight);
void forget_packed(int64_t owner);
// Frees the packs of a weight that is kept: it is packed again when it is used next.
void refresh_packed(const at::Tensor& weight);

// The panels of weight [N, K], of all columns, as panels.h describes them, for rows of this dtype, as x·Wᵀ reads it
// (transposed = false: depth K, columns N) or as g·W does (depth N, columns K). Undefined where it is not kept.
at::Tensor kept_panels(const at::Tensor& weight, bool transposed, Dtype rows, const Kernels& kernels);

// Frees all packs, as refresh_packed does, and the memory of panels.h.
void clear_packs();
// What the packs of living weights take.
int64_t packs_bytes();

}  // namespace cora::cpu
