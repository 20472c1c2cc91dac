// The CPU implementations of the ops: check, allocate, describe the work, run it.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "../checks.h"
#include "attention.h"
#include "lowrank_gemm.h"
#include "ops.h"
#include "outer.h"
#include "views.h"
#include "weight_packs.h"

namespace cora::cpu {
namespace {

using at::Tensor;

Segments segments_of(const OptionalTensor& cu_seqlens, int64_t batch, int64_t rows) {
  if (!cu_seqlens) {
    TORCH_CHECK(batch == 0 ? rows == 0 : rows % batch == 0, "expected ", batch, " samples of one length, got ", rows,
                " rows");
    return {batch, rows, batch ? rows / batch : 0, nullptr};
  }
  TORCH_CHECK(cu_seqlens->dim() == 1 && cu_seqlens->size(0) == batch + 1 && cu_seqlens->is_contiguous(),
              "cu_seqlens must be contiguous [", batch + 1, "], got ", cu_seqlens->sizes());
  check_dtype("cu_seqlens", *cu_seqlens, at::kInt);
  const int32_t* offsets = cu_seqlens->const_data_ptr<int32_t>();
  TORCH_CHECK_VALUE(offsets[0] == 0, "cu_seqlens must start at 0, got cu_seqlens[0] = ", offsets[0]);
  TORCH_CHECK_VALUE(offsets[batch] == rows, "cu_seqlens must end at the number of rows of x, ", rows,
                    ", got cu_seqlens[-1] = ", offsets[batch]);
  for (int64_t i = 0; i < batch; ++i) {
    TORCH_CHECK_VALUE(offsets[i] <= offsets[i + 1], "cu_seqlens must not decrease, got ", offsets[i], " then ",
                      offsets[i + 1], " at index ", i + 1);
  }
  return {batch, rows, -1, offsets};
}

Rows rows_of(const Tensor& t) { return {t.const_data_ptr(), t.stride(0), t.size(1)}; }

// The work of one call, and what must live as long: packs, scales, and biases in fp32.
struct Call {
  LowRankGemm gemm;
  Tensors kept;

  Call(const Tensor& rows, const OptionalTensor& scales, double scaling, const OptionalTensor& cu_seqlens,
       int64_t batch)
      : gemm{segments_of(cu_seqlens, batch, rows.size(0)), dtype_of(rows), float(scaling), nullptr, {}, {}, {}} {
    if (!scales) return;
    const Tensor values = scales->to(at::kFloat).contiguous();
    if (values.dim() == 0) {
      gemm.scale = *values.const_data_ptr<float>();
    } else {
      TORCH_CHECK(values.dim() == 1 && values.size(0) == batch, "scaling must be [", batch, "], got ", values.sizes());
      gemm.scales = keep(values).const_data_ptr<float>();
    }
  }

  const Tensor& keep(Tensor t) { return kept.emplace_back(std::move(t)); }

  BaseTerm base(int operand, const Tensor& weight, bool transposed) {
    const Matrix matrix = matrix_of(weight);
    BaseTerm term{operand, transposed ? matrix : matrix.transposed(), nullptr};
    const Tensor panels = kept_panels(weight, transposed, gemm.dtype, kernels());
    if (panels.defined()) term.panels = static_cast<const char*>(keep(panels).const_data_ptr());
    return term;
  }

  const float* bias(const OptionalTensor& bias, int64_t cols) {
    if (!bias) return nullptr;
    TORCH_CHECK(bias->dim() == 1 && bias->size(0) == cols, "bias must be [", cols, "], got ", bias->sizes());
    // The dispatcher makes tensors and lists of them plain, but not a list of optional ones.
    return keep(plain("bias", *bias).to(at::kFloat).contiguous()).const_data_ptr<float>();
  }

  // Adds S [rows, rank], to be computed from terms, or the one given, and returns it.
  Tensor add_shrink(std::vector<ShrinkTerm> terms, int64_t rank, const Tensor& given) {
    const int64_t rows = gemm.segments.rows;
    Tensor s = given.defined() ? given : at::empty({rows, rank}, at::kFloat);
    check_rows("s", s, rows, rank);
    check_dtype("s", s, at::kFloat);
    if (!s.is_contiguous()) s = keep(s.contiguous());
    gemm.shrinks.push_back({std::move(terms), rank, s.mutable_data_ptr<float>()});
    return s;
  }
};

}  // namespace

Tensor shrink(const Tensor& x, const Tensor& a, const OptionalTensor& scales, double scaling,
              const OptionalTensor& cu_seqlens, int64_t batch) {
  check_rows("x", x, x.size(0), x.size(1));
  check_factor("lora_a", a, batch, x.size(1), a.size(-1));
  Call call(x, scales, scaling, cu_seqlens, batch);
  call.gemm.operands.push_back(rows_of(x));
  const Tensor s = call.add_shrink({{0, matrix_of(a)}}, a.size(-1), Tensor());
  run(call.gemm, kernels());
  return s;
}

Tensors forward(const Tensor& x, at::TensorList weights, at::TensorList lora_as, at::TensorList lora_bs,
                const c10::List<OptionalTensor>& biases, const OptionalTensor& scales, double scaling,
                const OptionalTensor& cu_seqlens, int64_t batch, at::TensorList given) {
  const size_t n = weights.size();
  TORCH_CHECK(lora_bs.size() == n && biases.size() == n && (lora_as.size() == 1 || lora_as.size() == n) &&
                  (given.empty() || given.size() == lora_as.size()),
              "the lists of a group must have one length");
  check_rows("x", x, x.size(0), x.size(1));
  Call call(x, scales, scaling, cu_seqlens, batch);
  call.gemm.operands.push_back(rows_of(x));
  Tensors out, ss;
  for (size_t i = 0; i < lora_as.size(); ++i) {
    check_factor("lora_a", lora_as[i], batch, x.size(1), lora_as[i].size(-1));
    std::vector<ShrinkTerm> terms;
    if (given.empty()) terms.push_back({0, matrix_of(lora_as[i])});
    ss.push_back(call.add_shrink(std::move(terms), lora_as[i].size(-1), given.empty() ? Tensor() : given[i]));
  }
  for (size_t j = 0; j < n; ++j) {
    const int64_t cols = weights[j].size(0);
    const int a = lora_as.size() == 1 ? 0 : j;
    check_matrix("weight", weights[j], cols, x.size(1));
    check_factor("lora_b", lora_bs[j], batch, call.gemm.shrinks[a].rank, cols);
    const float* bias = call.bias(biases.get(j), cols);
    out.push_back(at::empty({x.size(0), cols}, x.options()));
    call.gemm.outputs.push_back(
        {out.back().mutable_data_ptr(), cols, bias, {call.base(0, weights[j], false)}, {{a, matrix_of(lora_bs[j])}}});
  }
  run(call.gemm, kernels());
  if (given.empty()) out.insert(out.end(), ss.begin(), ss.end());
  return out;
}

Tensors backward_input(at::TensorList gs, at::TensorList weights, at::TensorList lora_as, at::TensorList lora_bs,
                       const OptionalTensor& scales, double scaling, const OptionalTensor& cu_seqlens, int64_t batch,
                       int64_t n_a, at::TensorList given) {
  const int64_t n = gs.size();
  const bool need_dx = !weights.empty();
  const auto fits = [](at::TensorList list, bool wanted, int64_t size) {
    return int64_t(list.size()) == wanted * size;
  };
  TORCH_CHECK(n > 0 && (n_a == 1 || n_a == n) && fits(lora_bs, true, n) && fits(weights, need_dx, n) &&
                  fits(lora_as, need_dx, n_a) && fits(given, !given.empty(), n_a),
              "the lists of a group must have one length");
  const int64_t rows = gs[0].size(0);
  Call call(gs[0], scales, scaling, cu_seqlens, batch);
  std::vector<std::vector<ShrinkTerm>> terms(n_a);
  std::vector<int64_t> ranks(n_a);
  for (int64_t j = 0; j < n; ++j) {
    const int64_t a = n_a == 1 ? 0 : j;
    if (j == a) ranks[a] = lora_bs[j].size(-2);
    check_rows("grad", gs[j], rows, gs[j].size(1));
    check_dtype("grad", gs[j], gs[0].scalar_type());
    check_factor("lora_b", lora_bs[j], batch, ranks[a], gs[j].size(1));
    call.gemm.operands.push_back(rows_of(gs[j]));
    if (given.empty()) terms[a].push_back({int(j), matrix_of(lora_bs[j]).transposed()});
  }
  Tensors dss;
  for (int64_t a = 0; a < n_a; ++a) {
    dss.push_back(call.add_shrink(std::move(terms[a]), ranks[a], given.empty() ? Tensor() : given[a]));
  }
  Tensors out;
  if (need_dx) {
    const int64_t cols = weights[0].size(1);
    Output dx{nullptr, cols, nullptr, {}, {}};
    out.push_back(at::empty({rows, cols}, gs[0].options()));
    dx.data = out.back().mutable_data_ptr();
    for (int64_t j = 0; j < n; ++j) {
      check_matrix("weight", weights[j], gs[j].size(1), cols);
      dx.bases.push_back(call.base(j, weights[j], true));
    }
    for (int64_t a = 0; a < n_a; ++a) {
      check_factor("lora_a", lora_as[a], batch, cols, ranks[a]);
      dx.expands.push_back({int(a), matrix_of(lora_as[a]).transposed()});
    }
    call.gemm.outputs.push_back(std::move(dx));
  }
  run(call.gemm, kernels());
  if (given.empty()) out.insert(out.end(), dss.begin(), dss.end());
  return out;
}

Tensor linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, bool transposed) {
  TORCH_CHECK(weight.dim() == 2, "weight must be [N, K], got ", weight.sizes());
  const int64_t cols = weight.size(transposed ? 1 : 0);
  check_rows("x", x, x.size(0), weight.size(transposed ? 0 : 1));
  check_dtype("weight", weight, x.scalar_type());
  Call call(x, std::nullopt, 1., std::nullopt, 1);
  call.gemm.operands.push_back(rows_of(x));
  const Tensor out = at::empty({x.size(0), cols}, x.options());
  call.gemm.outputs.push_back(
      {out.mutable_data_ptr(), cols, call.bias(bias, cols), {call.base(0, weight, transposed)}, {}});
  run(call.gemm, kernels());
  return out;
}

Tensor outer(const Tensor& u, const Tensor& v, const OptionalTensor& cu_seqlens, int64_t batch, bool per_sample,
             at::ScalarType dtype) {
  const std::vector<int64_t> shape = outer_shape(u, v, batch, per_sample);
  const Segments segments = segments_of(cu_seqlens, batch, u.size(0));
  // The low-rank side is in fp32 and goes to registers row by row; where both are in fp32, it is the narrower one.
  const bool u_is_fp32 = u.scalar_type() == at::kFloat;
  const bool wide_first = u_is_fp32 ? v.scalar_type() == at::kFloat && u.size(1) > v.size(1) : true;
  const Tensor& wide = wide_first ? u : v;
  const Tensor narrow = (wide_first ? v : u).to(at::kFloat);
  const Tensor out = at::empty(shape, u.options().dtype(dtype));
  run(Outer{segments, per_sample, wide.const_data_ptr(), dtype_of(wide), wide.stride(0), wide.size(1),
            narrow.const_data_ptr<float>(), narrow.stride(0), narrow.size(1), out.mutable_data_ptr(), dtype_of(out),
            wide_first},
      kernels());
  return out;
}

namespace {

Heads heads_of(const char* name, const Tensor& t, int64_t rows, int64_t heads, int64_t dim) {
  TORCH_CHECK(t.dim() == 3 && t.size(0) == rows && t.size(1) == heads && t.size(2) == dim, name, " must be [", rows,
              ", ", heads, ", ", dim, "], got ", t.sizes());
  TORCH_CHECK(t.stride(2) == 1 || dim <= 1 || rows == 0, name, " must have unit stride within a head, got ",
              t.stride(2));
  return {t.const_data_ptr(), t.stride(0), t.stride(1)};
}

// The parent of each sample, or null; no child is one.
const int32_t* parents_of(const OptionalTensor& parents, int64_t batch) {
  if (!parents) return nullptr;
  TORCH_CHECK(parents->dim() == 1 && parents->size(0) == batch && parents->is_contiguous(),
              "parents must be contiguous [", batch, "], got ", parents->sizes());
  check_dtype("parents", *parents, at::kInt);
  const int32_t* values = parents->const_data_ptr<int32_t>();
  for (int64_t i = 0; i < batch; ++i) {
    const int32_t parent = values[i];
    TORCH_CHECK_VALUE(parent >= -1 && parent < batch, "parents must be -1 or one of the ", batch,
                      " samples, got parents[", i, "] = ", parent);
    TORCH_CHECK_VALUE(parent != i, "parents must name other samples, got parents[", i, "] = ", parent);
    TORCH_CHECK_VALUE(parent == -1 || values[parent] == -1, "parents must have no parents themselves, got parents[", i,
                      "] = ", parent, " and parents[", parent, "] = ", values[parent]);
  }
  return values;
}

Attention attention_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& sums, const Tensor& cu_seqlens,
                       const OptionalTensor& parents, double scale) {
  const int64_t rows = q.size(0), heads = q.size(1), dim = q.size(2), kv_heads = k.size(1);
  TORCH_CHECK(kv_heads > 0 && heads % kv_heads == 0, "the heads of q, ", heads, ", must be a multiple of k's, ",
              kv_heads);
  check_dtype("k", k, q.scalar_type());
  check_dtype("v", v, q.scalar_type());
  check_dtype("sums", sums, at::kFloat);
  TORCH_CHECK(sums.is_contiguous() && sums.numel() == 2 * heads * rows, "sums must be contiguous [2, ", heads, ", ",
              rows, "], got ", sums.sizes());
  return {segments_of(cu_seqlens, cu_seqlens.size(0) - 1, rows),
          parents_of(parents, cu_seqlens.size(0) - 1),
          dtype_of(q),
          heads,
          kv_heads,
          dim,
          float(scale),
          heads_of("q", q, rows, heads, dim),
          heads_of("k", k, rows, kv_heads, dim),
          heads_of("v", v, rows, kv_heads, dim),
          sums.mutable_data_ptr<float>()};
}

}  // namespace

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_seqlens,
                                     const OptionalTensor& parents, double scale) {
  const Tensor sums = at::empty({2, q.size(1), q.size(0)}, q.options().dtype(at::kFloat));
  const Tensor out = at::empty(q.sizes(), q.options());
  run_forward(attention_of(q, k, v, sums, cu_seqlens, parents, scale), out.mutable_data_ptr(), kernels());
  return {out, sums};
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& g, const Tensor& q, const Tensor& k,
                                                      const Tensor& v, const Tensor& sums, const Tensor& cu_seqlens,
                                                      const OptionalTensor& parents, double scale) {
  check_dtype("grad", g, q.scalar_type());
  const Tensor dq = at::empty(q.sizes(), q.options()), dk = at::empty(k.sizes(), k.options()),
               dv = at::empty(v.sizes(), v.options());
  run_backward(attention_of(q, k, v, sums, cu_seqlens, parents, scale),
               heads_of("grad", g, q.size(0), q.size(1), q.size(2)), dq.mutable_data_ptr(), dk.mutable_data_ptr(),
               dv.mutable_data_ptr(), kernels());
  return {dq, dk, dv};
}

TORCH_LIBRARY_IMPL(cora_kernels, CPU, m) {
  m.impl("cpu_shrink", &shrink);
  m.impl("cpu_forward", &forward);
  m.impl("cpu_backward_input", &backward_input);
  m.impl("cpu_linear", &linear);
  m.impl("cpu_outer", &outer);
  m.impl("cpu_attention", &attention);
  m.impl("cpu_attention_backward", &attention_backward);
}

}  // namespace cora::cpu
