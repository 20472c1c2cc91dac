// Makes the table of one instruction set of a kernels_*.cpp, which defines what it is made of:
//
//     CORA_TARGET   what the compiler may use, as the target attribute spells it
//     CORA_SIMD     the file that defines the vector type
//     CORA_TABLE    the table, declared in kernel_tables.h, and CORA_NAME, what it is called by
#ifdef __x86_64__
#include <immintrin.h>

#include <cstring>
#include <type_traits>
#include <utility>

#include "kernel_tables.h"

// A pragma whose text is made of macros.
#define CORA_PRAGMA(...) CORA_PRAGMA_TEXT(__VA_ARGS__)
#define CORA_PRAGMA_TEXT(...) _Pragma(#__VA_ARGS__)

#ifdef __clang__
CORA_PRAGMA(clang attribute push(__attribute__((target(CORA_TARGET))), apply_to = function))
#else
CORA_PRAGMA(GCC push_options)
CORA_PRAGMA(GCC target(CORA_TARGET))
#endif

namespace cora::cpu {
namespace {
#include CORA_SIMD

#include "packing.inl"

#include "softmax.inl"

#include "pointwise.inl"

#include "microkernel.inl"
}  // namespace

const Kernels CORA_TABLE = table(CORA_NAME);
}  // namespace cora::cpu

#ifdef __clang__
CORA_PRAGMA(clang attribute pop)
#else
CORA_PRAGMA(GCC pop_options)
#endif
#endif
