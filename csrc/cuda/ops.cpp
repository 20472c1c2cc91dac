// The drivers: check, allocate, launch what the strategy asks for.
#include "ops.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "../checks.h"
#include "decode.h"
#include "device.h"
#include "lowrank_gemm.h"
#include "outer.h"
#include "shrink.h"
#include "views.h"

namespace cora::gpu {

using at::Tensor;

namespace {

// What the launches of one call share.
struct Call {
  Device device;
  // Every sample, and all rows as one.
  Segments samples;
  Segments whole;
  Scaling scaling;
  Tensor scales;

  Call(const Tensor& rows, const OptionalTensor& scales_, double scaling_, const OptionalTensor& cu_seqlens,
       int64_t batch)
      : device(rows), scaling{nullptr, 0, float(scaling_)} {
    const int M = int_of("the number of rows", rows.size(0)), count = int_of("the number of samples", batch);
    TORCH_CHECK(cu_seqlens || (batch == 0 ? M == 0 : M % batch == 0), "expected ", batch,
                " samples of one length, got ", M, " rows");
    samples = {nullptr, M, count, !cu_seqlens && batch ? M / count : 0};
    if (cu_seqlens) {
      TORCH_CHECK(cu_seqlens->dim() == 1 && cu_seqlens->size(0) == batch + 1 && cu_seqlens->is_contiguous(),
                  "cu_seqlens must be contiguous [", batch + 1, "], got ", cu_seqlens->sizes());
      check_dtype("cu_seqlens", *cu_seqlens, at::kInt);
      samples.offsets = static_cast<const int32_t*>(data_of(*cu_seqlens));
    }
    whole = {nullptr, M, 1, M};
    if (!scales_) return;
    TORCH_CHECK(scales_->dim() == 0 || (scales_->dim() == 1 && scales_->size(0) == batch),
                "scaling must be a number or [", batch, "], got ", scales_->sizes());
    TORCH_CHECK(scales_->device() == rows.device(), "scaling must be on ", rows.device(), ", got ", scales_->device());
    scales = scales_->to(at::kFloat).contiguous();
    scaling.values = static_cast<const float*>(data_of(scales));
    scaling.stride = scales.dim() ? 1 : 0;
  }

  bool is_empty() const { return samples.rows == 0 || samples.count == 0; }
  const Segments& walk(bool per_sample) const { return per_sample ? samples : whole; }
};

// Whether the numbers of t [p, q] run along p.
bool runs_along_rows(const Tensor& t) { return t.stride(-2) == 1 && t.stride(-1) != 1; }

// s (+)= scaling · x·a, a [..., depth, rank].
void shrink_into(const Call& call, const Tensor& x, const Tensor& a, const Tensor& s, bool accumulate) {
  const bool inner_is_depth = runs_along_rows(a), per_sample = a.dim() == 3 || call.scaling.is_per_sample();
  check_factor("the shrinking factor", a, call.samples.count, x.size(1), s.size(1));
  if (call.is_empty()) return;
  const Tensor rows = aligned_rows(x);
  check(run(Shrink{matrix_of(rows), factor_of("the shrinking factor", a, x.scalar_type(), inner_is_depth),
                   static_cast<float*>(data_of(s)), call.scaling, call.walk(per_sample), int(x.size(1)),
                   int(a.size(-1)), inner_is_depth, accumulate},
            dtype_of(x), call.device.multiprocessors(), call.device.stream()));
}

Tensor empty_s(const Tensor& x, const Tensor& a) {
  return at::empty({x.size(0), a.size(-1)}, x.options().dtype(at::kFloat));
}

// Whether the kernels of the strategy can run the call: who chose it, cora_kernels/planning, knows the same limits.
void check_strategy(const std::string& strategy, int64_t rank, int length, bool given, bool accumulate) {
  if (strategy == "decode") {
    TORCH_CHECK(length >= 1 && length <= kDecodeRows && rank <= kDecodeRank && !accumulate, "decode: expected samples of 1 to ",
                kDecodeRows, " rows, a rank of at most ", kDecodeRank, " and no sum, got ", length, " rows (0: packed), rank ",
                rank, accumulate ? " and a sum" : "");
  } else if (strategy == "one_pass") {
    TORCH_CHECK(!given && rank <= kOnePassRank, "one_pass: expected a rank of at most ", kOnePassRank,
                " and no S, got rank ", rank, given ? " and S" : "");
  } else {
    TORCH_CHECK(strategy == "two_kernels" || strategy == "separate", "strategy: expected one_pass, two_kernels, separate or decode, got ", strategy);
  }
}

// x·w + S·b + bias, added to y if it is defined. S = scaling · x·a is computed where s is not defined yet.
// x [rows, depth], w [depth, cols], a [..., depth, rank], b [..., rank, cols].
Tensor low_rank(const Call& call, const Tensor& x, const Tensor& w_, const Tensor& a, const Tensor& b,
                const OptionalTensor& bias_, Tensor& s, Tensor y, const std::string& strategy) {
  const int64_t depth = x.size(1), cols = w_.size(1), rank = b.size(-2);
  check_rows("x", x, call.samples.rows, depth);
  check_matrix("weight", w_, depth, cols);
  check_factor("the expanding factor", b, call.samples.count, rank, cols);
  if (!s.defined()) check_factor("the shrinking factor", a, call.samples.count, depth, rank);
  check_dtype("weight", w_, x.scalar_type());
  TORCH_CHECK(depth % 8 == 0 && cols % 8 == 0, "widths must be multiples of 8, got ", depth, " and ", cols);
  const bool transposed = w_.stride(0) == 1 && w_.stride(1) != 1;
  const Tensor w = transposed ? aligned_rows(w_.t()).t() : aligned_rows(w_);
  Tensor bias;
  if (bias_) {
    TORCH_CHECK(bias_->dim() == 1 && bias_->size(0) == cols, "bias must be [", cols, "], got ", bias_->sizes());
    check_dtype("bias", *bias_, x.scalar_type());
    bias = bias_->contiguous();
    if (reinterpret_cast<uintptr_t>(data_of(bias)) % 16) bias = bias.clone();
  }
  const bool accumulate = y.defined(), given = s.defined();
  check_strategy(strategy, rank, call.samples.length, given, accumulate);
  if (!accumulate) y = at::empty({x.size(0), cols}, x.options());
  if (!given) s = empty_s(x, a);
  if (call.is_empty()) return y;
  const Tensor rows = aligned_rows(x);
  const void* bias_data = bias.defined() ? data_of(bias) : nullptr;
  float* const s_data = static_cast<float*>(data_of(s));
  const at::ScalarType dtype = x.scalar_type();

  if (strategy == "decode") {
    const Factor factor = given ? Factor{} : factor_of("the shrinking factor", a, dtype, false);
    check(run(
        Decode{matrix_of(rows), factor, factor_of("the expanding factor", b, dtype, false), bias_data, s_data,
               data_of(y), call.scaling, call.samples.count, call.samples.length, int(cols), int(depth), int(rank), 0},
        dtype_of(x), call.device.multiprocessors(), call.device.stream()));
    return y.addmm_(rows, w);
  }

  // Separate: S·B + bias by our kernel, which then has no depth to walk, and x·w on top by the vendor's GEMM.
  const bool one_pass = strategy == "one_pass", separate = strategy == "separate";
  if (!given && !one_pass) shrink_into(call, rows, a, s, false);
  const bool per_sample = b.dim() == 3 || (one_pass && (a.dim() == 3 || call.scaling.is_per_sample()));
  const Factor factor = one_pass ? factor_of("the shrinking factor", a, dtype, !transposed) : Factor{};
  check(run(LowRankGemm{matrix_of(rows),
                        {data_of(w), w.stride(transposed ? 1 : 0)},
                        factor,
                        factor_of("the expanding factor", b, dtype, !transposed),
                        bias_data,
                        s_data,
                        data_of(y),
                        call.scaling,
                        call.walk(per_sample),
                        int(cols),
                        separate ? 0 : int(depth),
                        int(rank),
                        !transposed,
                        accumulate},
            dtype_of(x), call.device.multiprocessors(), call.device.stream()));
  return separate ? y.addmm_(rows, w) : y;
}

Tensor ready(at::TensorList given, size_t i, int64_t rows) {
  if (given.empty()) return {};
  check_dtype("s", given[i], at::kFloat);
  check_rows("s", given[i], rows, given[i].size(1));
  const Tensor s = given[i].contiguous();
  return reinterpret_cast<uintptr_t>(data_of(s)) % 16 ? s.clone() : s;
}

}  // namespace

Tensor shrink(const Tensor& x, const Tensor& a, const OptionalTensor& scales, double scaling,
              const OptionalTensor& cu_seqlens, int64_t batch) {
  check_rows("x", x, x.size(0), x.size(1));
  const Call call(x, scales, scaling, cu_seqlens, batch);
  Tensor s = empty_s(x, a);
  shrink_into(call, x, a, s, false);
  return s;
}

std::vector<Tensor> forward(const Tensor& x, at::TensorList weights, at::TensorList lora_as, at::TensorList lora_bs,
                            const c10::List<OptionalTensor>& biases, const OptionalTensor& scales, double scaling,
                            const OptionalTensor& cu_seqlens, int64_t batch, at::TensorList given,
                            const c10::List<std::string>& strategies) {
  const size_t n = weights.size();
  TORCH_CHECK(lora_bs.size() == n && biases.size() == n && (lora_as.size() == 1 || lora_as.size() == n) &&
                  (given.empty() || given.size() == lora_as.size()) && strategies.size() == n,
              "the lists of a group must have one length");
  check_rows("x", x, x.size(0), x.size(1));
  const Call call(x, scales, scaling, cu_seqlens, batch);
  std::vector<Tensor> out, ss(lora_as.size());
  for (size_t i = 0; i < ss.size(); ++i)
    ss[i] = ready(given, i, x.size(0));
  for (size_t j = 0; j < n; ++j) {
    // S that one projection computed serves the others that share its A.
    const size_t i = lora_as.size() == 1 ? 0 : j;
    out.push_back(low_rank(call, x, weights[j].t(), lora_as[i], lora_bs[j], biases.get(j), ss[i], {},
                           strategies.get(j)));
  }
  if (given.empty()) out.insert(out.end(), ss.begin(), ss.end());
  return out;
}

std::vector<Tensor> backward_input(at::TensorList gs, at::TensorList weights, at::TensorList lora_as,
                                   at::TensorList lora_bs, const OptionalTensor& scales, double scaling,
                                   const OptionalTensor& cu_seqlens, int64_t batch, int64_t n_a_, at::TensorList given,
                                   const c10::List<std::string>& strategies) {
  const size_t n = gs.size(), n_a = size_t(n_a_);
  const bool need_dx = !weights.empty();
  TORCH_CHECK(n > 0 && (n_a == 1 || n_a == n) && lora_bs.size() == n && weights.size() == need_dx * n &&
                  lora_as.size() == need_dx * n_a && (given.empty() || given.size() == n_a) &&
                  strategies.size() == need_dx * n_a,
              "the lists of a group must have one length");
  const Call call(gs[0], scales, scaling, cu_seqlens, batch);
  for (const Tensor& g : gs) {
    check_rows("grad", g, gs[0].size(0), g.size(1));
    check_dtype("grad", g, gs[0].scalar_type());
  }
  std::vector<Tensor> dss(n_a), out;
  for (size_t i = 0; i < n_a; ++i)
    dss[i] = ready(given, i, gs[0].size(0));
  if (given.empty() && (n_a < n || !need_dx)) {
    for (size_t j = 0; j < n; ++j) {
      const Tensor b = lora_bs[j].transpose(-1, -2);
      Tensor& ds = dss[n_a == 1 ? 0 : j];
      const bool accumulate = ds.defined();
      if (!accumulate) ds = empty_s(gs[j], b);
      shrink_into(call, gs[j], b, ds, accumulate);
    }
  }
  if (need_dx) {
    // dx is the forward with g for x, Bᵀ for A and Aᵀ for B, summed over the group.
    Tensor dx;
    for (size_t i = 0; i < n_a; ++i) {
      dx = low_rank(call, gs[i], weights[i], lora_bs[i].transpose(-1, -2), lora_as[i].transpose(-1, -2), std::nullopt,
                    dss[i], dx, strategies.get(i));
    }
    for (size_t j = n_a; j < n; ++j)
      dx.addmm_(gs[j], weights[j]);
    out.push_back(dx);
  }
  if (given.empty()) out.insert(out.end(), dss.begin(), dss.end());
  return out;
}

Tensor outer(const Tensor& u, const Tensor& v, const OptionalTensor& cu_seqlens, int64_t batch, bool per_sample,
             at::ScalarType dtype) {
  check_rows("u", u, u.size(0), u.size(1));
  check_rows("v", v, u.size(0), v.size(1));
  const Call call(u, std::nullopt, 1.0, cu_seqlens, batch);
  const Segments& segments = call.walk(per_sample);
  std::vector<int64_t> shape{u.size(1), v.size(1)};
  if (per_sample) shape.insert(shape.begin(), batch);
  if (call.is_empty()) return at::zeros(shape, u.options().dtype(dtype));
  const bool u_is_fp32 = u.scalar_type() == at::kFloat, v_is_fp32 = v.scalar_type() == at::kFloat;
  const int p = int_of("the columns of u", u.size(1)), q = int_of("the columns of v", v.size(1));
  if (u_is_fp32 && v_is_fp32) {
    const Tensor out = at::empty(shape, u.options());
    check(run(NarrowOuter{static_cast<const float*>(data_of(u)), static_cast<const float*>(data_of(v)), u.stride(0),
                          v.stride(0), static_cast<float*>(data_of(out)), segments, p, q},
              call.device.stream()));
    return out.to(dtype);
  }
  const bool wide_is_u = !u_is_fp32 && (v_is_fp32 || p >= q);
  const Tensor wide = aligned_rows(wide_is_u ? u : v), &narrow = wide_is_u ? v : u;
  const int cols = wide_is_u ? p : q, rank = wide_is_u ? q : p;
  TORCH_CHECK(cols % 8 == 0, "widths must be multiples of 8, got ", cols);
  TORCH_CHECK(dtype == at::kFloat || dtype == wide.scalar_type(), "the product must be float32 or ", wide.scalar_type(),
              ", got ", dtype);
  const Tensor out = at::empty(shape, u.options().dtype(dtype));
  const int splits = splits_of(segments, cols, rank, call.device.multiprocessors());
  Tensor planes;
  if (splits > 1) planes = at::empty({splits, out.numel()}, u.options().dtype(at::kFloat));
  check(run(Outer{matrix_of(wide), factor_of("the narrow side", narrow, wide.scalar_type(), false), data_of(out),
                  splits > 1 ? static_cast<float*>(data_of(planes)) : nullptr, segments, cols, rank, splits, !wide_is_u,
                  dtype == at::kFloat},
            dtype_of(wide), call.device.stream()));
  return out;
}

}  // namespace cora::gpu
