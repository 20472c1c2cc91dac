// Rows of attention between their two products, over the vector type of simd_*.inl. instruction_set.inl includes it.
// What a row holds past its end is not read as a number: it may be anything.

// e^v within 2 units in the last place, for v from -87 (below: about 1e-38) to 88. NaN stays NaN.
inline Vec exp(Vec v) {
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  // Adding 1.5 · 2^23 rounds to a whole number and leaves it in the low bits.
  constexpr float kRound = 12582912.f;
  v = max(set1(-87.f), v);
  const Vec rounded = fma(v, set1(kLog2E), set1(kRound));
  const Vec n = add(rounded, set1(-kRound));
  const Vec f = fma(n, set1(-kLn2Low), fma(n, set1(-kLn2High), v));
  Vec power = set1(1.f / 5040);
  for (const float c : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2, 1.f, 1.f})
    power = fma(power, f, set1(c));
  return times_power_of_two(power, rounded);
}

// The lanes [first, last) of v; the others are zero.
inline Vec lanes_of(Vec v, int64_t first, int64_t last) {
  if (first <= 0 && last >= kWidth) return v;
  float lanes[kWidth], kept[kWidth] = {};
  store(lanes, v);
  for (int64_t i = first > 0 ? first : 0; i < smaller(last, kWidth); ++i)
    kept[i] = lanes[i];
  return load(kept);
}

inline float sum_of(Vec v) {
  float lanes[kWidth], sum = 0;
  store(lanes, v);
  for (float lane : lanes)
    sum += lane;
  return sum;
}

inline float largest(const float* row, int64_t cols) {
  Vec most = set1(row[0]);
  int64_t col = 0;
  for (; col + kWidth <= cols; col += kWidth)
    most = max(most, load(row + col));
  float lanes[kWidth], found = row[0];
  store(lanes, most);
  for (float lane : lanes)
    found = lane > found ? lane : found;
  for (; col < cols; ++col)
    found = row[col] > found ? row[col] : found;
  return found;
}

inline void store_lanes(void* row, Dtype dtype, int64_t col, Vec v) {
  store_any(static_cast<char*>(row) + col * size_of(dtype), dtype, v, kWidth);
}

inline void softmax(float* s, int64_t cols, int64_t width, Dtype dtype, void* p, float* top, float* share) {
  *top = largest(s, cols);
  Vec sum = zero();
  for (int64_t col = 0; col < width; col += kWidth) {
    const Vec e = lanes_of(exp(add(load(s + col), set1(-*top))), 0, cols - col);
    store(s + col, e);
    sum = add(sum, e);
  }
  *share = 1.f / sum_of(sum);
  for (int64_t col = 0; col < width; col += kWidth)
    store_lanes(p, dtype, col, mul(load(s + col), set1(*share)));
}

inline void softmax_backward(float* s, const float* dp, float top, float share, int64_t cols, int64_t width,
                             Dtype dtype, void* p, void* ds) {
  Vec sum = zero();
  for (int64_t col = 0; col < width; col += kWidth) {
    const Vec chance = mul(set1(share), lanes_of(exp(add(load(s + col), set1(-top))), 0, cols - col));
    store(s + col, chance);
    store_lanes(p, dtype, col, chance);
    sum = add(sum, lanes_of(mul(chance, load(dp + col)), 0, cols - col));
  }
  const float delta = sum_of(sum);
  for (int64_t col = 0; col < width; col += kWidth) {
    const Vec grad = mul(load(s + col), add(load(dp + col), set1(-delta)));
    store_lanes(ds, dtype, col, lanes_of(grad, 0, cols - col));
  }
}

// to row j + i · N = lanes [i · N, (i + 1) · N) of the j-th of N vectors turned, for rows below `cols`.
template <int N>
inline void store_turned(Vec (&rows)[kWidth], int64_t cols, float* to, int64_t stride) {
  transpose<N>(rows);
  for (int j = 0; j < N; ++j) {
    float lanes[kWidth];
    store(lanes, rows[j]);
    for (int64_t row = j; row < smaller(cols, kWidth); row += N)
      std::memcpy(to + row * stride, lanes + row - j, N * sizeof(float));
  }
}

inline void turn(const void* rows, int64_t stride, int64_t count, int64_t cols, Dtype dtype, void* to,
                 int64_t to_stride) {
  for (int64_t col = 0; col < cols; col += kWidth) {
    Vec block[kWidth];
    if (dtype == Dtype::kFloat) {
      const float* from = static_cast<const float*>(rows) + col;
      for (int i = 0; i < kTileRows; ++i)
        block[i] = i < count ? load(from + i * stride) : zero();
      store_turned<kTileRows>(block, cols - col, static_cast<float*>(to) + col * to_stride, to_stride);
    } else {
      // Two rows side by side are turned as one of elements twice as wide.
      const uint16_t* from = static_cast<const uint16_t*>(rows) + col;
      for (int i = 0; i < kTileRows; i += 2, from += 2 * stride) {
        block[i / 2] = i + 1 < count ? pair_rows(from, from + stride, kWidth)
                       : i < count   ? pair_bf16(load_bf16(from, kWidth), zero())
                                     : zero();
      }
      float* pairs = static_cast<float*>(to) + col * to_stride / 2;
      store_turned<kTileRows / 2>(block, cols - col, pairs, to_stride / 2);
    }
  }
}
