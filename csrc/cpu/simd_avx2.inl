// Eight fp32 lanes. instruction_set.inl includes this file, inside a target region and a namespace.

using Vec = __m256;
constexpr int kWidth = 8;
// Accumulators: 4 x 3 of 16 registers.
constexpr int kBlockRows = 4;
constexpr int kBlockVecs = 3;
// So deep a part of half a panel, 18 KiB in whole cache lines, stays in an L1 of 32 KiB beside four rows of x. The
// whole depth would be read from L2 for every four rows, 24 bytes a cycle where the products take their least time: as
// much as a Zen 3 can read.
constexpr int64_t kPartDepth = 144;

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec set1(float value) { return _mm256_set1_ps(value); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
// b where either is NaN.
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
// v · 2^n, where `rounded` is 1.5 · 2^23 + n.
inline Vec times_power_of_two(Vec v, Vec rounded) {
  const __m256i n = _mm256_slli_epi32(_mm256_castps_si256(rounded), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), n));
}

inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
inline Vec load_half(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

// The first n lanes, the others zero; n may exceed the width. AVX2 has no masks for 16-bit lanes: a copy serves the
// edge.
template <class T>
struct Edge {
  T lanes[kWidth] = {};
  Edge() = default;
  Edge(const T* p, int64_t n) { std::memcpy(lanes, p, (n < kWidth ? n : kWidth) * sizeof(T)); }
  void to(T* p, int64_t n) const { std::memcpy(p, lanes, (n < kWidth ? n : kWidth) * sizeof(T)); }
  __m128i bits() const { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(lanes)); }
};

inline Vec load(const float* p, int64_t n) { return n >= kWidth ? load(p) : load(Edge<float>(p, n).lanes); }
inline Vec load_half(const uint16_t* p, int64_t n) {
  return n >= kWidth ? load_half(p) : _mm256_cvtph_ps(Edge<uint16_t>(p, n).bits());
}
inline Vec load_bf16(const uint16_t* p, int64_t n) {
  const __m128i bits = n >= kWidth ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)) : Edge<uint16_t>(p, n).bits();
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

// The bf16 at even and odd positions of 16, widened.
inline Vec even_bf16(Vec pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(pairs), 16)); }
inline Vec odd_bf16(Vec pairs) {
  return _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(pairs), _mm256_set1_epi32(0xffff0000)));
}

// bf16 bits in the low half of each lane: to nearest even, NaN stays NaN.
inline __m256i bf16_bits(Vec v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7fc0), nan);
}
inline Vec pair_bf16(Vec even, Vec odd) {
  return _mm256_castsi256_ps(_mm256_or_si256(bf16_bits(even), _mm256_slli_epi32(bf16_bits(odd), 16)));
}

// The first n of two rows of bf16, side by side.
inline Vec pair_rows(const uint16_t* even, const uint16_t* odd, int64_t n) {
  return pair_bf16(load_bf16(even, n), load_bf16(odd, n));
}

// Two vectors of them.
inline void pair_rows(const uint16_t* even, const uint16_t* odd, Vec (&pairs)[2]) {
  for (int i = 0; i < 2; ++i)
    pairs[i] = pair_rows(even + i * kWidth, odd + i * kWidth, kWidth);
}

inline void store(float* p, Vec v, int64_t n) {
  if (n >= kWidth) return store(p, v);
  Edge<float> edge;
  store(edge.lanes, v);
  edge.to(p, n);
}
inline void store_bits(uint16_t* p, __m128i bits, int64_t n) {
  if (n >= kWidth) return _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bits);
  Edge<uint16_t> edge;
  _mm_storeu_si128(reinterpret_cast<__m128i*>(edge.lanes), bits);
  edge.to(p, n);
}
inline void store_half(uint16_t* p, Vec v, int64_t n) {
  store_bits(p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT), n);
}
inline void store_bf16(uint16_t* p, Vec v, int64_t n) {
  const __m256i bits = bf16_bits(v);
  store_bits(p, _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1)), n);
}

inline Vec join_halves(Vec a, Vec b) { return _mm256_insertf128_ps(a, _mm256_castps256_ps128(b), 1); }

// Four elements of a row and of that 4 further, side by side.
inline Vec load_halves(const float* p, int64_t stride) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + 4 * stride), 1);
}

// columns[i] = element i of eight rows `stride` apart: half of the shuffling is done by loads.
inline void load_columns(const float* p, int64_t stride, Vec (&columns)[kWidth]) {
  for (int i = 0; i < kWidth; i += 4, p += 4) {
    const Vec a = load_halves(p, stride), b = load_halves(p + stride, stride);
    const Vec c = load_halves(p + 2 * stride, stride), d = load_halves(p + 3 * stride, stride);
    const Vec ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
    const Vec cd_low = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
    columns[i] = _mm256_shuffle_ps(ab_low, cd_low, 0x44);
    columns[i + 1] = _mm256_shuffle_ps(ab_low, cd_low, 0xee);
    columns[i + 2] = _mm256_shuffle_ps(ab_high, cd_high, 0x44);
    columns[i + 3] = _mm256_shuffle_ps(ab_high, cd_high, 0xee);
  }
}

// The first N rows, N x N at a time side by side: N is the width, or half of it.
template <int N>
inline void transpose(Vec (&rows)[kWidth]) {
  Vec pairs[N];
  for (int i = 0; i < N; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  Vec quads[N];
  for (int i = 0; i < N; i += 4) {
    quads[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    quads[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    quads[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    quads[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    if constexpr (N == kWidth) {
      rows[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
      rows[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
    } else {
      rows[i] = quads[i];
    }
  }
}
