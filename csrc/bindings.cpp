// The extension module cora_kernels._C: the schemas of the ops, and what Python may ask and set in the native code.
#include <torch/extension.h>
#include <torch/library.h>
#include <torch/version.h>

#include "cpu/fast_path.h"
#include "cpu/kernels.h"
#include "cpu/weight_packs.h"

namespace cpu = cora::cpu;

TORCH_LIBRARY(cora_kernels, m) {
  m.def("cpu_shrink(Tensor x, Tensor a, Tensor? scales, float scaling, Tensor? cu_seqlens, SymInt batch) -> Tensor");
  m.def(
      "cpu_forward(Tensor x, Tensor[] weights, Tensor[] lora_as, Tensor[] lora_bs, Tensor?[] biases, Tensor? scales, "
      "float scaling, Tensor? cu_seqlens, SymInt batch, Tensor[] s) -> Tensor[]");
  m.def(
      "cpu_backward_input(Tensor[] gs, Tensor[] weights, Tensor[] lora_as, Tensor[] lora_bs, Tensor? scales, "
      "float scaling, Tensor? cu_seqlens, SymInt batch, int n_a, Tensor[] ds) -> Tensor[]");
  m.def("cpu_linear(Tensor x, Tensor weight, Tensor? bias, bool transposed) -> Tensor");
  m.def("cpu_outer(Tensor u, Tensor v, Tensor? cu_seqlens, SymInt batch, bool per_sample, ScalarType dtype) -> Tensor");
  m.def(
      "cpu_attention(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, Tensor? parents, float scale) -> "
      "(Tensor, Tensor)");
  m.def(
      "cpu_attention_backward(Tensor g, Tensor q, Tensor k, Tensor v, Tensor sums, Tensor cu_seqlens, Tensor? parents, "
      "float scale) -> (Tensor, Tensor, Tensor)");
  m.def("cpu_rms_norm(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)");
  m.def("cpu_rms_norm_backward(Tensor g, Tensor x, Tensor weight, Tensor scales) -> Tensor");
  m.def("cpu_silu_gate(Tensor gate, Tensor up) -> Tensor");
  m.def("cpu_silu_gate_backward(Tensor g, Tensor gate, Tensor up) -> (Tensor, Tensor)");
  m.def("cpu_rotary(Tensor x, Tensor cos, Tensor sin, bool backward) -> Tensor");
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.attr("torch_version") = TORCH_VERSION;
  // The instruction set in use, and all that this machine could use.
  m.def("cpu_isa", []() -> std::optional<std::string> {
    const cpu::Kernels* kernels = cpu::chosen_kernels();
    return kernels ? std::optional<std::string>(kernels->name) : std::nullopt;
  });
  m.def("cpu_isas", []() {
    std::vector<std::string> names;
    for (const char* name : {"amx", "avx512_bf16", "avx512", "avx2"}) {
      if (cpu::find_kernels(name)) names.push_back(name);
    }
    return names;
  });
  m.def("set_cpu_isa", [](const std::optional<std::string>& name) {
    const cpu::Kernels* kernels = name ? cpu::find_kernels(name->c_str()) : nullptr;
    TORCH_CHECK_VALUE(!name || kernels, "this machine has no kernels for ", name.value_or(""));
    cpu::choose_kernels(kernels);
  });
  m.def("fast_path_group", &cpu::fast_path_group);
  m.def("keep_packed", &cpu::keep_packed);
  m.def("release_packed", &cpu::release_packed);
  m.def("forget_packed", &cpu::forget_packed);
  m.def("refresh_packed", &cpu::refresh_packed);
  m.def("clear_packs", &cpu::clear_packs);
  // Waits for packs that are being made.
  m.def("packs_bytes", &cpu::packs_bytes, pybind11::call_guard<pybind11::gil_scoped_release>());
}
