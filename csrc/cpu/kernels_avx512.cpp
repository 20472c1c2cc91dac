#define CORA_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
#define CORA_SIMD "simd_avx512.inl"
#define CORA_TABLE kernels_avx512
#define CORA_NAME "avx512"
#include "instruction_set.inl"
