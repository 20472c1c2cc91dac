#include "kernel_tables.h"

#ifdef __x86_64__
#include <immintrin.h>

#include <cstring>
#include <type_traits>
#include <utility>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#endif

namespace cora::cpu {
namespace {
#include "simd_avx512.inl"

#include "packing.inl"

#include "softmax.inl"

#include "microkernel.inl"
}  // namespace

const Kernels kernels_avx512 = table("avx512");
}  // namespace cora::cpu

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
