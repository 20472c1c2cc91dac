#include "fast_path.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/python_variable.h>

#include "autograd.h"
#include "views.h"

namespace cora::cpu {
namespace {

using at::Tensor;

// The tensor, if it is a plain one that autograd can save and that has no tangent (forward mode); or null.
const Tensor* tensor_of(PyObject* object) {
  if (!THPVariable_Check(object)) return nullptr;
  const Tensor& t = THPVariable_Unpack(object);
  if (!is_plain(t) || t._fw_grad(0).defined()) return nullptr;
  return t.is_inference() && at::GradMode::is_enabled() ? nullptr : &t;
}

// A mode that would see the ops, autocast, a function transform, or torch.jit.trace.
bool is_watched() {
  constexpr c10::DispatchKeySet watchers({c10::DispatchKey::FuncTorchDynamicLayerFrontMode, c10::DispatchKey::Tracer});
  return at::autocast::is_autocast_enabled(at::kCPU) || c10::impl::TorchDispatchModeTLS::any_modes_set() ||
         c10::impl::tls_local_dispatch_key_set().included_.has_any(watchers);
}

bool is_factor_dtype(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf;
}

// [rows, any] or [batch, rows, any], of a dtype that factors may have.
bool is_factor(const Tensor* t, int64_t batch, int64_t rows) {
  return t && is_factor_dtype(t->scalar_type()) && (t->dim() == 2 || (t->dim() == 3 && t->size(0) == batch)) &&
         t->size(-2) == rows;
}

bool is_sequence(pybind11::handle value) { return PyTuple_Check(value.ptr()) || PyList_Check(value.ptr()); }

PyObject* item(pybind11::handle sequence, Py_ssize_t i) { return PySequence_Fast_GET_ITEM(sequence.ptr(), i); }

Py_ssize_t size(pybind11::handle sequence) { return PySequence_Fast_GET_SIZE(sequence.ptr()); }

std::vector<Tensor> tensors_of(pybind11::handle sequence) {
  std::vector<Tensor> tensors;
  for (Py_ssize_t i = 0; i < size(sequence); ++i) {
    tensors.push_back(item(sequence, i) == Py_None ? Tensor() : THPVariable_Unpack(item(sequence, i)));
  }
  return tensors;
}

// Whether every check in cora_kernels/functional.py passes, nothing has to be cast, and nobody watches.
bool takes(pybind11::handle x_, pybind11::handle weights, pybind11::handle lora_as, pybind11::handle lora_bs,
           pybind11::handle biases, pybind11::handle scaling) {
  const Tensor* x = tensor_of(x_.ptr());
  if (!x || x->dim() != 3 || !is_factor_dtype(x->scalar_type())) return false;
  if (!PyFloat_Check(scaling.ptr()) || is_watched()) return false;
  if (!is_sequence(weights) || !is_sequence(lora_as) || !is_sequence(lora_bs) || !is_sequence(biases)) return false;
  const Py_ssize_t n = size(weights), n_a = size(lora_as);
  if (n == 0 || size(lora_bs) != n || size(biases) != n || (n_a != 1 && n_a != n)) return false;

  const int64_t batch = x->size(0), width = x->size(2);
  for (Py_ssize_t j = 0; j < n; ++j) {
    const Tensor* a = tensor_of(item(lora_as, n_a == 1 ? 0 : j));
    if (!is_factor(a, batch, width) || a->size(-1) == 0) return false;
    const Tensor* weight = tensor_of(item(weights, j));
    if (!weight || weight->scalar_type() != x->scalar_type() || weight->dim() != 2 || weight->size(1) != width ||
        weight->numel() == 0 || (weight->requires_grad() && at::GradMode::is_enabled())) {
      return false;
    }
    const Tensor* b = tensor_of(item(lora_bs, j));
    if (!is_factor(b, batch, a->size(-1)) || b->size(-1) != weight->size(0)) return false;
    if (item(biases, j) == Py_None) continue;
    const Tensor* bias = tensor_of(item(biases, j));
    if (!bias || bias->scalar_type() != x->scalar_type() || bias->dim() != 1 || bias->size(0) != weight->size(0)) {
      return false;
    }
  }
  return true;
}

}  // namespace

pybind11::object fast_path_group(pybind11::handle x, pybind11::handle weights, pybind11::handle lora_as,
                                 pybind11::handle lora_bs, pybind11::handle biases, pybind11::handle scaling) {
  if (!takes(x, weights, lora_as, lora_bs, biases, scaling)) return pybind11::none();
  std::vector<Tensor> ys;
  {
    const Tensor& rows = THPVariable_Unpack(x.ptr());
    const auto frozen = tensors_of(weights), as = tensors_of(lora_as), bs = tensors_of(lora_bs),
               added = tensors_of(biases);
    const double scale = PyFloat_AS_DOUBLE(scaling.ptr());
    const pybind11::gil_scoped_release unlocked;
    ys = lora_linear_group(rows, frozen, as, bs, added, scale);
  }
  pybind11::tuple out(ys.size());
  for (size_t j = 0; j < ys.size(); ++j) {
    PyTuple_SET_ITEM(out.ptr(), j, THPVariable_Wrap(std::move(ys[j])));
  }
  return out;
}

}  // namespace cora::cpu
