// AVX-512 with products of bf16 pairs (vdpbf16ps).
#define CORA_TARGET "avx512bf16,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
#define CORA_SIMD "simd_avx512.inl"
#define CORA_BF16_PAIRS
#define CORA_TABLE kernels_avx512_bf16
#define CORA_NAME "avx512_bf16"
#include "instruction_set.inl"
