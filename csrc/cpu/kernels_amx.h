#pragma once

#include "kernels.h"

namespace cora::cpu {

// The AVX-512 bf16 kernels with the base products by brgemm.
Kernels with_amx(Kernels kernels);

// Whether torch lets oneDNN be used (torch.backends.mkldnn.enabled).
bool brgemm_usable();

}  // namespace cora::cpu
