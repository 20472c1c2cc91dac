// What lies between the products of a language model, over the vector type of simd_*.inl, in fp32 throughout.
// instruction_set.inl includes it.

template <Dtype dtype>
Vec load_at(const void* row, int64_t col, int64_t cols) {
  return load_any(static_cast<const char*>(row) + col * size_of(dtype), dtype, cols - col);
}

template <Dtype dtype>
void store_at(void* row, int64_t col, int64_t cols, Vec v) {
  store_any(static_cast<char*>(row) + col * size_of(dtype), dtype, v, cols - col);
}

// Bytes.
constexpr int64_t kAhead = 2048;

// Has what will be read, or written, so far ahead on its way: between two loads there is more to compute here than a
// processor looks ahead by itself.
template <Dtype dtype, class Pointer>
void fetch_ahead(Pointer row, int64_t i) {
  __builtin_prefetch(static_cast<const char*>(row) + i * size_of(dtype) + kAhead,
                     !std::is_const_v<std::remove_pointer_t<Pointer>>);
}

// Calls f with a constant of this dtype.
template <class F>
auto with_dtype(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::kFloat: return f(std::integral_constant<Dtype, Dtype::kFloat>());
    case Dtype::kHalf: return f(std::integral_constant<Dtype, Dtype::kHalf>());
    default: return f(std::integral_constant<Dtype, Dtype::kBFloat16>());
  }
}

template <Dtype dtype>
float rms_norm_of(const void* x, const void* weight, int64_t cols, float eps, void* y) {
  Vec squares = zero();
  for (int64_t col = 0; col < cols; col += kWidth) {
    const Vec v = load_at<dtype>(x, col, cols);
    squares = fma(v, v, squares);
  }
  const float scale = 1.f / __builtin_sqrtf(sum_of(squares) / cols + eps);
  for (int64_t col = 0; col < cols; col += kWidth) {
    const Vec v = mul(load_at<dtype>(x, col, cols), set1(scale));
    store_at<dtype>(y, col, cols, mul(v, load_at<dtype>(weight, col, cols)));
  }
  return scale;
}

template <Dtype dtype>
void rms_norm_backward_of(const void* g, const void* x, const void* weight, int64_t cols, float scale, void* dx) {
  Vec products = zero();
  for (int64_t col = 0; col < cols; col += kWidth) {
    fetch_ahead<dtype>(g, col);
    fetch_ahead<dtype>(x, col);
    fetch_ahead<dtype>(dx, col);
    const Vec gw = mul(load_at<dtype>(g, col, cols), load_at<dtype>(weight, col, cols));
    products = fma(gw, load_at<dtype>(x, col, cols), products);
  }
  const float along = -scale * scale * sum_of(products) / cols;
  for (int64_t col = 0; col < cols; col += kWidth) {
    const Vec gw = mul(load_at<dtype>(g, col, cols), load_at<dtype>(weight, col, cols));
    const Vec v = fma(load_at<dtype>(x, col, cols), set1(along), gw);
    store_at<dtype>(dx, col, cols, mul(v, set1(scale)));
  }
}

// 1 / (1 + e^-v) for v from -88 on.
inline Vec sigmoid(Vec v) { return div(set1(1.f), add(set1(1.f), exp(mul(v, set1(-1.f))))); }

// The gate where its sigmoid is a number: below -88 both it and its derivative are 0 but for 1e-36.
template <Dtype dtype>
Vec load_gate(const void* gate, int64_t i, int64_t n) {
  return max(set1(-88.f), load_at<dtype>(gate, i, n));
}

template <Dtype dtype>
void silu_gate_of(const void* gate, const void* up, int64_t n, void* out) {
  for (int64_t i = 0; i < n; i += kWidth) {
    fetch_ahead<dtype>(gate, i);
    fetch_ahead<dtype>(up, i);
    fetch_ahead<dtype>(out, i);
    const Vec v = load_gate<dtype>(gate, i, n);
    store_at<dtype>(out, i, n, mul(mul(v, sigmoid(v)), load_at<dtype>(up, i, n)));
  }
}

template <Dtype dtype>
void silu_gate_backward_of(const void* g, const void* gate, const void* up, int64_t n, void* dgate, void* dup) {
  for (int64_t i = 0; i < n; i += kWidth) {
    fetch_ahead<dtype>(g, i);
    fetch_ahead<dtype>(gate, i);
    fetch_ahead<dtype>(up, i);
    fetch_ahead<dtype>(dgate, i);
    fetch_ahead<dtype>(dup, i);
    const Vec dy = load_at<dtype>(g, i, n), v = load_gate<dtype>(gate, i, n), s = sigmoid(v);
    const Vec silu = mul(v, s);
    // The derivative of v·s is s + v·s·(1 − s).
    const Vec slope = fma(silu, add(set1(1.f), mul(s, set1(-1.f))), s);
    store_at<dtype>(dgate, i, n, mul(mul(dy, load_at<dtype>(up, i, n)), slope));
    store_at<dtype>(dup, i, n, mul(dy, silu));
  }
}

inline float rms_norm(const void* x, const void* weight, Dtype dtype, int64_t cols, float eps, void* y) {
  return with_dtype(dtype, [&](auto type) { return rms_norm_of<type>(x, weight, cols, eps, y); });
}

inline void rms_norm_backward(const void* g, const void* x, const void* weight, Dtype dtype, int64_t cols, float scale,
                              void* dx) {
  with_dtype(dtype, [&](auto type) { rms_norm_backward_of<type>(g, x, weight, cols, scale, dx); });
}

inline void silu_gate(const void* gate, const void* up, Dtype dtype, int64_t n, void* out) {
  with_dtype(dtype, [&](auto type) { silu_gate_of<type>(gate, up, n, out); });
}

inline void silu_gate_backward(const void* g, const void* gate, const void* up, Dtype dtype, int64_t n, void* dgate,
                               void* dup) {
  with_dtype(dtype, [&](auto type) { silu_gate_backward_of<type>(g, gate, up, n, dgate, dup); });
}

template <Dtype dtype>
void rotary_of(const void* x, int64_t head_stride, const void* cos, const void* sin, int64_t heads, int64_t half,
               bool backward, void* y) {
  const auto at = [](auto* p, int64_t elements) { return p + elements * size_of(dtype); };
  const char *from = static_cast<const char*>(x), *c = static_cast<const char*>(cos),
             *s = static_cast<const char*>(sin);
  char* to = static_cast<char*>(y);
  for (int64_t col = 0; col < half; col += kWidth) {
    const Vec c_low = load_at<dtype>(c, col, half), c_high = load_at<dtype>(at(c, half), col, half);
    const Vec s_low = mul(load_at<dtype>(s, col, half), set1(-1.f)), s_high = load_at<dtype>(at(s, half), col, half);
    const Vec of_high = backward ? s_high : s_low, of_low = backward ? s_low : s_high;
    for (int64_t head = 0; head < heads; ++head) {
      const char* source = at(from, head * head_stride);
      char* out = at(to, 2 * head * half);
      for (const int64_t part : {col, half + col}) {
        fetch_ahead<dtype>(source, part);
        fetch_ahead<dtype>(out, part);
      }
      const Vec low = load_at<dtype>(source, col, half), high = load_at<dtype>(at(source, half), col, half);
      store_at<dtype>(out, col, half, fma(high, of_high, mul(low, c_low)));
      store_at<dtype>(at(out, half), col, half, fma(low, of_low, mul(high, c_high)));
    }
  }
}

inline void rotary(const void* x, int64_t head_stride, const void* cos, const void* sin, Dtype dtype, int64_t heads,
                   int64_t half, bool backward, void* y) {
  with_dtype(dtype, [&](auto type) { rotary_of<type>(x, head_stride, cos, sin, heads, half, backward, y); });
}
