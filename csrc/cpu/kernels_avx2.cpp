#define CORA_TARGET "avx2,fma,f16c"
#define CORA_SIMD "simd_avx2.inl"
#define CORA_TABLE kernels_avx2
#define CORA_NAME "avx2"
#include "instruction_set.inl"
