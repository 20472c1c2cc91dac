#include "autograd.h"

#include <ATen/ops/_unsafe_view.h>
#include <ATen/ops/sum.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>

#include <algorithm>

#include "ops.h"
#include "views.h"

namespace cora::cpu {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;

// [B, T, C] -> [M, C] of unit column stride.
Tensor as_rows(const Tensor& t) {
  const Tensor rows = t.reshape({t.size(0) * t.size(1), t.size(2)});
  return rows.stride(1) == 1 ? rows : rows.contiguous();
}

// The operands of a call, by part or as the one list that autograd counts.
struct Operands {
  Tensor x;
  Tensors weights, lora_as, lora_bs, biases;

  Tensors flat() const {
    Tensors all{x};
    for (const Tensors* part : {&weights, &lora_as, &lora_bs})
      all.insert(all.end(), part->begin(), part->end());
    for (const Tensor& bias : biases) {
      if (bias.defined()) all.push_back(bias);
    }
    return all;
  }
};

// A kernel's result, under the name that it has as an op: profilers show it.
template <class Kernel>
auto recorded(const char* name, Kernel&& kernel) {
  RECORD_FUNCTION(name, c10::ArrayRef<const c10::IValue>());
  return kernel();
}

bool any_requires_grad(const Tensors& tensors) {
  return std::any_of(tensors.begin(), tensors.end(), [](const Tensor& t) { return t.requires_grad(); });
}

// The ys, then the ss.
Tensors ys_and_ss(const Operands& in, double scaling) {
  c10::List<OptionalTensor> biases;
  for (const Tensor& bias : in.biases)
    biases.push_back(bias.defined() ? OptionalTensor(bias) : std::nullopt);
  const int64_t batch = in.x.size(0), length = in.x.size(1);
  Tensors out = recorded("cora_kernels::cpu_forward", [&] {
    return forward(as_rows(in.x), in.weights, in.lora_as, in.lora_bs, biases, std::nullopt, scaling, std::nullopt,
                   batch, {});
  });
  for (size_t j = 0; j < in.weights.size(); ++j)
    out[j] = at::_unsafe_view(out[j], {batch, length, out[j].size(1)});  // a view could not be written in place
  return out;
}

// What the gradient of each factor is like, in one number: twice its dtype, plus one where every sample has its own.
std::vector<int64_t> likes_of(const Tensors& factors) {
  std::vector<int64_t> likes;
  for (const Tensor& t : factors)
    likes.push_back(static_cast<int64_t>(t.scalar_type()) * 2 + (t.dim() == 3));
  return likes;
}

class LoraLinearGroup : public torch::autograd::Function<LoraLinearGroup> {
 public:
  // The list is that of in.flat(): autograd does not see into `in`.
  static Tensors forward(AutogradContext* ctx, at::TensorList, const Operands& in, double scaling) {
    Tensors ys = ys_and_ss(in, scaling);
    const Tensors ss(ys.begin() + in.weights.size(), ys.end());
    ys.resize(in.weights.size());

    const bool needs_x = in.x.requires_grad(), needs_as = any_requires_grad(in.lora_as);
    Tensors saved(1);
    if (needs_as) saved[0] = in.x;
    const auto save = [&](const Tensors& tensors, bool needed) {
      for (const Tensor& t : tensors)
        saved.push_back(needed ? t : Tensor());
    };
    save(in.weights, needs_x);
    save(in.lora_as, needs_x);
    save(in.lora_bs, needs_x || needs_as);
    save(ss, any_requires_grad(in.lora_bs));
    ctx->save_for_backward(saved);
    ctx->saved_data["scaling"] = scaling;
    ctx->saved_data["as"] = likes_of(in.lora_as);
    ctx->saved_data["bs"] = likes_of(in.lora_bs);
    std::vector<int64_t> bias_dtypes;
    for (const Tensor& bias : in.biases) {
      bias_dtypes.push_back(bias.defined() ? static_cast<int64_t>(bias.scalar_type()) : -1);
    }
    ctx->saved_data["biases"] = bias_dtypes;
    return ys;
  }

  static Tensors backward(AutogradContext* ctx, const Tensors& grads) {
    Tensors found;
    {
      const at::NoGradGuard no_grad;
      found = gradients(ctx, grads);
    }
    if (at::GradMode::is_enabled()) refuse_another(found);
    found.resize(found.size() + 2);  // of `in` and `scaling`
    return found;
  }

 private:
  static Tensors gradients(AutogradContext* ctx, const Tensors& grads) {
    const auto as = ctx->saved_data["as"].toIntVector(), bs = ctx->saved_data["bs"].toIntVector();
    const auto bias_dtypes = ctx->saved_data["biases"].toIntVector();
    const double scaling = ctx->saved_data["scaling"].toDouble();
    const size_t n = bs.size(), n_a = as.size();
    const int64_t batch = grads[0].size(0);
    const Tensors saved = ctx->get_saved_variables();
    const Tensor* weights = saved.data() + 1;
    const Tensor* lora_as = weights + n;
    const Tensor* lora_bs = lora_as + n_a;
    const Tensor* ss = lora_bs + n;
    const auto needed = [&](size_t i) { return ctx->needs_input_grad(i); };
    const size_t first_a = 1 + n, first_b = first_a + n_a;

    Tensors gs;
    for (const Tensor& g : grads)
      gs.push_back(as_rows(plain("grad_outputs", g)));
    Tensors found(first_b + n);
    Tensors dss;
    bool needs_as = false;
    for (size_t j = 0; j < n_a; ++j)
      needs_as |= needed(first_a + j);
    const bool needs_x = needed(0);
    if (needs_x || needs_as) {
      dss = recorded("cora_kernels::cpu_backward_input", [&] {
        return backward_input(gs, {weights, needs_x ? n : 0}, {lora_as, needs_x ? n_a : 0}, {lora_bs, n}, std::nullopt,
                              scaling, std::nullopt, batch, n_a, {});
      });
      if (needs_x) {
        found[0] = dss[0].view({batch, grads[0].size(1), dss[0].size(1)});
        dss.erase(dss.begin());
      }
    }
    const auto factor_gradient = [&](const Tensor& u, const Tensor& v, int64_t like) {
      return recorded("cora_kernels::cpu_outer", [&] {
        return outer(u, v, std::nullopt, batch, like % 2 == 1, static_cast<at::ScalarType>(like / 2));
      });
    };
    const Tensor x = needs_as ? as_rows(saved[0]) : Tensor();
    for (size_t j = 0; j < n_a; ++j) {
      if (needed(first_a + j)) found[first_a + j] = factor_gradient(x, dss[j], as[j]);
    }
    for (size_t j = 0; j < n; ++j) {
      if (needed(first_b + j)) found[first_b + j] = factor_gradient(ss[n_a == 1 ? 0 : j], gs[j], bs[j]);
    }
    for (size_t j = 0; j < n; ++j) {
      if (bias_dtypes[j] < 0) continue;
      const bool wanted = needed(found.size());
      const auto dtype = static_cast<at::ScalarType>(bias_dtypes[j]);
      found.push_back(wanted ? at::sum(gs[j], at::IntArrayRef{0}, false, at::kFloat).to(dtype) : Tensor());
    }
    return found;
  }

  // With create_graph the gradients look differentiable, but to differentiate them raises an error.
  static void refuse_another(Tensors& found) {
    Tensors defined;
    for (const Tensor& t : found) {
      if (t.defined()) defined.push_back(t.detach().requires_grad_());
    }
    const auto message = "lora_linear has no second derivative: it is once_differentiable";
    Tensors marked = torch::autograd::DelayedError(message, defined.size()).apply(std::move(defined));
    size_t i = 0;
    for (Tensor& t : found) {
      if (t.defined()) t = marked[i++];
    }
  }
};

}  // namespace

Tensors lora_linear_group(const Tensor& x, const Tensors& weights, const Tensors& lora_as, const Tensors& lora_bs,
                          const Tensors& biases, double scaling) {
  const Operands in{x, weights, lora_as, lora_bs, biases};
  if (at::GradMode::is_enabled()) {
    const Tensors all = in.flat();
    if (any_requires_grad(all)) return LoraLinearGroup::apply(at::TensorList(all), in, scaling);
  }
  Tensors ys = ys_and_ss(in, scaling);
  ys.resize(weights.size());
  return ys;
}

}  // namespace cora::cpu
