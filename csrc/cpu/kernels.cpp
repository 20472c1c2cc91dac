#include "kernels.h"

#include <atomic>
#include <cstring>

#include "kernel_tables.h"

namespace cora::cpu {
namespace {

// Null: the best that this machine runs.
std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels* find_kernels(const char* name) {
#ifdef __x86_64__
  // The compiler's CPU test also asks the operating system whether it saves the wide registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool avx512_bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  // brgemm runs without AMX too, in AVX-512, but no faster than the kernels here: then it serves only by name.
  const bool amx = avx512_bf16 && brgemm_usable() && (name || __builtin_cpu_supports("amx-bf16"));
  static const Kernels kernels_amx = with_amx(kernels_avx512_bf16);
  struct Candidate {
    const Kernels& kernels;
    bool usable;
  };
  for (const auto& [kernels, usable] : {Candidate{kernels_amx, amx}, Candidate{kernels_avx512_bf16, avx512_bf16},
                                        Candidate{kernels_avx512, avx512}, Candidate{kernels_avx2, avx2}}) {
    if (usable && (!name || !std::strcmp(name, kernels.name))) return &kernels;
  }
#endif
  return nullptr;
}

void choose_kernels(const Kernels* kernels) { chosen = kernels; }

const Kernels* chosen_kernels() {
  const Kernels* kernels = chosen;
  return kernels ? kernels : find_kernels();
}

}  // namespace cora::cpu
