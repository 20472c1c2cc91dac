// What lies between the products of a language model: the norm of rows, the gate of an MLP, the rotation of queries and
// keys by their position. Operators would each read and write all of memory, in fp32 where the numbers are in bf16;
// here a row is read once or twice, from cache.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

#include "../checks.h"
#include "kernels.h"
#include "views.h"

namespace cora::cpu {
namespace {

using at::Tensor;

// Elements that are worth a thread.
constexpr int64_t kGrain = 16384;

void check_like(const char* name, const Tensor& t, const Tensor& other) {
  check_dtype(name, t, other.scalar_type());
  TORCH_CHECK(t.sizes() == other.sizes() && t.is_contiguous(), name, " must be contiguous ", other.sizes(), ", got ",
              t.sizes());
}

void check_norm(const Tensor& x, const Tensor& weight) {
  TORCH_CHECK(x.dim() == 2 && x.is_contiguous(), "x must be contiguous [rows, cols], got ", x.sizes());
  TORCH_CHECK(weight.dim() == 1 && weight.size(0) == x.size(1) && weight.is_contiguous(), "weight must be contiguous [",
              x.size(1), "], got ", weight.sizes());
  check_dtype("weight", weight, x.scalar_type());
}

// Calls part(first, last) for parts of the rows.
template <class Part>
void for_rows(int64_t rows, int64_t cols, const Part& part) {
  at::parallel_for(0, rows, std::max<int64_t>(kGrain / std::max<int64_t>(cols, 1), 1), part);
}

const char* row_of(const Tensor& t, int64_t i) {
  return static_cast<const char*>(t.const_data_ptr()) + i * t.size(-1) * t.element_size();
}

char* row_to(const Tensor& t, int64_t i) {
  return static_cast<char*>(t.mutable_data_ptr()) + i * t.size(-1) * t.element_size();
}

}  // namespace

std::tuple<Tensor, Tensor> rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  check_norm(x, weight);
  const Kernels& table = kernels();
  const Tensor y = at::empty_like(x), scales = at::empty({x.size(0)}, x.options().dtype(at::kFloat));
  float* scale = scales.mutable_data_ptr<float>();
  for_rows(x.size(0), x.size(1), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      scale[i] = table.rms_norm(row_of(x, i), row_of(weight, 0), dtype_of(x), x.size(1), float(eps), row_to(y, i));
    }
  });
  return {y, scales};
}

Tensor rms_norm_backward(const Tensor& g, const Tensor& x, const Tensor& weight, const Tensor& scales) {
  check_norm(x, weight);
  check_like("g", g, x);
  check_dtype("scales", scales, at::kFloat);
  TORCH_CHECK(scales.dim() == 1 && scales.size(0) == x.size(0) && scales.is_contiguous(), "scales must be contiguous [",
              x.size(0), "], got ", scales.sizes());
  const Kernels& table = kernels();
  const Tensor dx = at::empty_like(x);
  const float* scale = scales.const_data_ptr<float>();
  for_rows(x.size(0), x.size(1), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      table.rms_norm_backward(row_of(g, i), row_of(x, i), row_of(weight, 0), dtype_of(x), x.size(1), scale[i],
                              row_to(dx, i));
    }
  });
  return dx;
}

Tensor silu_gate(const Tensor& gate, const Tensor& up) {
  check_like("gate", gate, gate);
  check_like("up", up, gate);
  const Kernels& table = kernels();
  const Tensor out = at::empty_like(gate);
  const int64_t bytes = gate.element_size();
  at::parallel_for(0, gate.numel(), kGrain, [&](int64_t first, int64_t last) {
    table.silu_gate(static_cast<const char*>(gate.const_data_ptr()) + first * bytes,
                    static_cast<const char*>(up.const_data_ptr()) + first * bytes, dtype_of(gate), last - first,
                    static_cast<char*>(out.mutable_data_ptr()) + first * bytes);
  });
  return out;
}

std::tuple<Tensor, Tensor> silu_gate_backward(const Tensor& g, const Tensor& gate, const Tensor& up) {
  check_like("gate", gate, gate);
  check_like("up", up, gate);
  check_like("g", g, gate);
  const Kernels& table = kernels();
  const Tensor dgate = at::empty_like(gate), dup = at::empty_like(gate);
  const int64_t bytes = gate.element_size();
  at::parallel_for(0, gate.numel(), kGrain, [&](int64_t first, int64_t last) {
    const auto from = [&](const Tensor& t) { return static_cast<const char*>(t.const_data_ptr()) + first * bytes; };
    const auto to = [&](const Tensor& t) { return static_cast<char*>(t.mutable_data_ptr()) + first * bytes; };
    table.silu_gate_backward(from(g), from(gate), from(up), dtype_of(gate), last - first, to(dgate), to(dup));
  });
  return {dgate, dup};
}

Tensor rotary(const Tensor& x, const Tensor& cos, const Tensor& sin, bool backward) {
  TORCH_CHECK(x.dim() == 4 && x.size(3) % 2 == 0 && (x.stride(3) == 1 || x.numel() == 0),
              "x must be [batch, rows, heads, an even width] of unit inner stride, got ", x.sizes());
  const int64_t rows = x.size(1), heads = x.size(2), width = x.size(3);
  TORCH_CHECK(cos.dim() == 3 && (cos.size(0) == 1 || cos.size(0) == x.size(0)) && cos.size(1) == rows &&
                  cos.size(2) == width && cos.is_contiguous(),
              "cos must be contiguous [1 or ", x.size(0), ", ", rows, ", ", width, "], got ", cos.sizes());
  check_dtype("cos", cos, x.scalar_type());
  check_like("sin", sin, cos);
  const Kernels& table = kernels();
  const Tensor y = at::empty(x.sizes(), x.options());
  for_rows(x.size(0) * rows, heads * width, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t offset = i / rows * x.stride(0) + i % rows * x.stride(1);
      const int64_t angle = cos.size(0) == 1 ? i % rows : i;
      table.rotary(static_cast<const char*>(x.const_data_ptr()) + offset * x.element_size(), x.stride(2),
                   row_of(cos, angle), row_of(sin, angle), dtype_of(x), heads, width / 2, backward,
                   static_cast<char*>(y.mutable_data_ptr()) + i * heads * width * x.element_size());
    }
  });
  return y;
}

TORCH_LIBRARY_IMPL(cora_kernels, CPU, m) {
  m.impl("cpu_rms_norm", &rms_norm);
  m.impl("cpu_rms_norm_backward", &rms_norm_backward);
  m.impl("cpu_silu_gate", &silu_gate);
  m.impl("cpu_silu_gate_backward", &silu_gate_backward);
  m.impl("cpu_rotary", &rotary);
}

}  // namespace cora::cpu
