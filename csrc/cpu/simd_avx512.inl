// Sixteen fp32 lanes. instruction_set.inl includes this file, inside a target region and a namespace.

using Vec = __m512;
constexpr int kWidth = 16;
// Accumulators: 8 x 3 of 32 registers.
constexpr int kBlockRows = 8;
constexpr int kBlockVecs = 3;
// Twice the rows share what is read of a panel: it comes from L2 fast enough.
constexpr int64_t kPartDepth = 0;

inline __mmask16 first(int64_t n) { return n >= kWidth ? 0xffff : static_cast<__mmask16>((1u << n) - 1); }

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec set1(float value) { return _mm512_set1_ps(value); }
inline Vec set1_bits(int32_t bits) { return _mm512_castsi512_ps(_mm512_set1_epi32(bits)); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
// b where either is NaN.
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
// v · 2^n, where `rounded` is 1.5 · 2^23 + n.
inline Vec times_power_of_two(Vec v, Vec rounded) {
  const __m512i n = _mm512_slli_epi32(_mm512_castps_si512(rounded), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), n));
}

inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline Vec load_half(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// The first n lanes, the others zero; n may exceed the width.
inline Vec load(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
inline Vec load_half(const uint16_t* p, int64_t n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p)); }
inline Vec load_bf16(const uint16_t* p, int64_t n) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

// The bf16 at even and odd positions of 32, widened.
inline Vec even_bf16(Vec pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(pairs), 16)); }
inline Vec odd_bf16(Vec pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(pairs), _mm512_set1_epi32(0xffff0000)));
}

// bf16 bits in the low half of each lane: to nearest even, NaN stays NaN.
inline __m512i bf16_bits(Vec v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, _mm512_set1_epi32(0x7fc0));
}
// To bf16, to nearest even: the instruction where there is one.
inline __m256i to_bf16(Vec v) {
#ifdef CORA_BF16_PAIRS
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));
#else
  return _mm512_cvtepi32_epi16(bf16_bits(v));
#endif
}
inline Vec pair_bf16(Vec even, Vec odd) {
  const __m512i low = _mm512_cvtepu16_epi32(to_bf16(even));
  const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(to_bf16(odd)), 16);
  return _mm512_castsi512_ps(_mm512_or_si512(low, high));
}

// The first n of two rows of bf16, side by side.
inline Vec pair_rows(const uint16_t* even, const uint16_t* odd, int64_t n) {
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), even));
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), odd));
  return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

// Two vectors of them: of whole rows, by one load each.
inline void pair_rows(const uint16_t* even, const uint16_t* odd, Vec (&pairs)[2]) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                       5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const __m512i a = _mm512_loadu_si512(even), b = _mm512_loadu_si512(odd);
  pairs[0] = _mm512_castsi512_ps(_mm512_permutex2var_epi16(a, low, b));
  pairs[1] = _mm512_castsi512_ps(_mm512_permutex2var_epi16(a, high, b));
}

// Masked stores cost Zen 4 several times a plain one: only edges take them.
inline void store(float* p, Vec v, int64_t n) {
  if (n >= kWidth) return store(p, v);
  _mm512_mask_storeu_ps(p, first(n), v);
}
inline void store_bits(uint16_t* p, __m256i bits, int64_t n) {
  if (n >= kWidth) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bits);
  _mm256_mask_storeu_epi16(p, first(n), bits);
}
inline void store_half(uint16_t* p, Vec v, int64_t n) {
  store_bits(p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT), n);
}
inline void store_bf16(uint16_t* p, Vec v, int64_t n) { store_bits(p, to_bf16(v), n); }

// The low halves of both.
inline Vec join_halves(Vec a, Vec b) { return _mm512_insertf32x8(a, _mm512_castps512_ps256(b), 1); }

// Four elements of a row and of those 4, 8 and 12 further, side by side.
inline Vec load_quarters(const float* p, int64_t stride) {
  Vec v = _mm512_castps128_ps512(_mm_loadu_ps(p));
  v = _mm512_mask_broadcast_f32x4(v, 0x00f0, _mm_loadu_ps(p + 4 * stride));
  v = _mm512_mask_broadcast_f32x4(v, 0x0f00, _mm_loadu_ps(p + 8 * stride));
  return _mm512_mask_broadcast_f32x4(v, 0xf000, _mm_loadu_ps(p + 12 * stride));
}

// columns[i] = element i of sixteen rows `stride` apart: most of the shuffling is done by loads.
inline void load_columns(const float* p, int64_t stride, Vec (&columns)[kWidth]) {
#pragma GCC unroll 4
  for (int i = 0; i < kWidth; i += 4, p += 4) {
    const Vec a = load_quarters(p, stride), b = load_quarters(p + stride, stride);
    const Vec c = load_quarters(p + 2 * stride, stride), d = load_quarters(p + 3 * stride, stride);
    const __m512d ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
    const __m512d ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
    const __m512d cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
    const __m512d cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
    columns[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low));
    columns[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low));
    columns[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high));
    columns[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high));
  }
}

// The first N rows, N x N at a time side by side: N is the width, or half of it. Every round swaps the off-diagonal
// halves of ever larger 2 x 2 blocks.
template <int N>
inline void transpose(Vec (&rows)[kWidth]) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
#pragma GCC unroll 4
  for (int step = 1; step < N; step *= 2) {
    const __m512i shift = _mm512_set1_epi32(step);
    const __mmask16 high = _mm512_test_epi32_mask(lane, shift);
    // Lane indices into (a, b), b's from 16 on: a keeps its low halves and takes b's, and the other way round.
    const __m512i from_low = _mm512_mask_add_epi32(lane, high, _mm512_sub_epi32(lane, shift), _mm512_set1_epi32(16));
    const __m512i from_high = _mm512_mask_add_epi32(_mm512_add_epi32(lane, shift), high, lane, _mm512_set1_epi32(16));
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) {
      if (i & step) continue;
      const Vec a = rows[i];
      const Vec b = rows[i + step];
      rows[i] = _mm512_permutex2var_ps(a, from_low, b);
      rows[i + step] = _mm512_permutex2var_ps(a, from_high, b);
    }
  }
}
