// The tables of the instruction sets, among which kernels.cpp chooses.
#pragma once

#include "kernels.h"

namespace cora::cpu {

#ifdef __x86_64__
extern const Kernels kernels_avx2, kernels_avx512, kernels_avx512_bf16;
#endif

// The AVX-512 bf16 kernels with the base products by brgemm.
Kernels with_amx(Kernels kernels);

// Whether torch lets oneDNN be used (torch.backends.mkldnn.enabled).
bool brgemm_usable();

}  // namespace cora::cpu
