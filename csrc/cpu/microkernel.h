// The micro-kernels, written once over the vector type that simd_*.h defines. Every kernels_*.cpp includes this file in a
// target region and an unnamed namespace, so one binary holds all instruction sets. No std function is called here: its
// instantiation would be shared by all of them and might carry the wrong instructions.

template <class A, class B>
constexpr int64_t smaller(A a, B b) {
  return a < b ? a : b;
}

// --- products: how one strip is multiplied into the accumulators [MR rows x NV vectors] ---

// fp32 rows times a panel of fp32, fp16 or pairs of bf16, widened on load.
template <Panel kind>
struct Widened {
  template <int MR, int NV>
  static void accumulate(const Strip& strip, Vec (&acc)[MR][NV], int64_t row0, int64_t col0) {
    const float* rows = static_cast<const float*>(strip.rows) + row0 * strip.row_stride;
    if constexpr (kind == Panel::kPairs) {
      const float* panel = static_cast<const float*>(strip.panel) + col0;
      for (int64_t k = 0; k < strip.depth; k += 2, panel += strip.panel_stride) {
        Vec b[NV];
        for (int v = 0; v < NV; ++v) b[v] = even_bf16(load(panel + v * kWidth));
        step(rows + k, strip.row_stride, b, acc);
        for (int v = 0; v < NV; ++v) b[v] = odd_bf16(load(panel + v * kWidth));
        step(rows + k + 1, strip.row_stride, b, acc);
      }
    } else {
      using Element = std::conditional_t<kind == Panel::kFloat, float, uint16_t>;
      const Element* panel = static_cast<const Element*>(strip.panel) + col0;
      for (int64_t k = 0; k < strip.depth; ++k, panel += strip.panel_stride) {
        Vec b[NV];
        for (int v = 0; v < NV; ++v) {
          if constexpr (kind == Panel::kFloat) b[v] = load(panel + v * kWidth);
          if constexpr (kind == Panel::kHalf) b[v] = load_half(panel + v * kWidth);
        }
        step(rows + k, strip.row_stride, b, acc);
      }
    }
  }

  template <int MR, int NV>
  static void step(const float* rows, int64_t row_stride, const Vec (&b)[NV], Vec (&acc)[MR][NV]) {
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      const Vec a = set1(rows[m * row_stride]);
#pragma GCC unroll 3
      for (int v = 0; v < NV; ++v) acc[m][v] = fma(a, b[v], acc[m][v]);
    }
  }
};

#ifdef CORA_BF16_PAIRS
// bf16 rows times a panel of bf16 pairs: two depths an instruction.
struct Paired {
  template <int MR, int NV>
  static void accumulate(const Strip& strip, Vec (&acc)[MR][NV], int64_t row0, int64_t col0) {
    const uint16_t* rows = static_cast<const uint16_t*>(strip.rows) + row0 * strip.row_stride;
    const float* panel = static_cast<const float*>(strip.panel) + col0;
    for (int64_t k = 0; k < strip.depth; k += 2, panel += strip.panel_stride) {
      __m512bh b[NV];
      for (int v = 0; v < NV; ++v) b[v] = reinterpret_cast<__m512bh>(load(panel + v * kWidth));
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
        int32_t pair;
        std::memcpy(&pair, rows + m * strip.row_stride + k, sizeof(pair));
        const __m512bh a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
#pragma GCC unroll 3
        for (int v = 0; v < NV; ++v) acc[m][v] = _mm512_dpbf16_ps(acc[m][v], a, b[v]);
      }
    }
  }
};
#endif

// --- the tile ---

template <class Base, class Low, int MR, int NV>
void block(const Strip* base, int n_base, const Strip* low, int n_low, bool add, float* c, int64_t row0, int64_t col0) {
  Vec acc[MR][NV];
  float* out = c + row0 * kTileCols + col0;
  for (int m = 0; m < MR; ++m) {
    for (int v = 0; v < NV; ++v) acc[m][v] = add ? load(out + m * kTileCols + v * kWidth) : zero();
  }
  for (int i = 0; i < n_base; ++i) Base::accumulate(base[i], acc, row0, col0);
  for (int i = 0; i < n_low; ++i) Low::accumulate(low[i], acc, row0, col0);
  for (int m = 0; m < MR; ++m) {
    for (int v = 0; v < NV; ++v) store(out + m * kTileCols + v * kWidth, acc[m][v]);
  }
}

using BlockFn = void (*)(const Strip*, int, const Strip*, int, bool, float*, int64_t, int64_t);

template <class Base, class Low, class = std::make_integer_sequence<int, kBlockRows * kBlockVecs>>
struct Blocks;
template <class Base, class Low, int... I>
struct Blocks<Base, Low, std::integer_sequence<int, I...>> {
  static constexpr BlockFn table[] = {block<Base, Low, I / kBlockVecs + 1, I % kBlockVecs + 1>...};
};

template <class Base, class Low>
void tile(int rows, int cols, const Strip* base, int n_base, const Strip* low, int n_low, bool add, float* c) {
  const int vecs = (cols + kWidth - 1) / kWidth;
  for (int vec = 0; vec < vecs; vec += kBlockVecs) {
    const int nv = smaller(vecs - vec, kBlockVecs);
    for (int row = 0; row < rows; row += kBlockRows) {
      const int mr = smaller(rows - row, kBlockRows);
      Blocks<Base, Low>::table[(mr - 1) * kBlockVecs + nv - 1](base, n_base, low, n_low, add, c, row, vec * kWidth);
    }
  }
}

// --- packing and conversion ---

inline Vec load_any(const void* p, Dtype dtype, int64_t n) {
  switch (dtype) {
    case Dtype::kFloat: return load(static_cast<const float*>(p), n);
    case Dtype::kHalf: return load_half(static_cast<const uint16_t*>(p), n);
    default: return load_bf16(static_cast<const uint16_t*>(p), n);
  }
}

inline void store_any(void* p, Dtype dtype, Vec v, int64_t n) {
  switch (dtype) {
    case Dtype::kFloat: return store(static_cast<float*>(p), v, n);
    case Dtype::kHalf: return store_half(static_cast<uint16_t*>(p), v, n);
    default: return store_bf16(static_cast<uint16_t*>(p), v, n);
  }
}

// block[i] = src[row + i, col : col + width], zero outside rows x cols.
inline void load_block(const Matrix& src, int64_t row, int64_t col, int64_t rows, int64_t cols, Vec (&block)[kWidth]) {
  if (src.col_stride == 1) {
    for (int i = 0; i < kWidth; ++i) block[i] = i < rows ? load_any(src.at(0, row + i, col), src.dtype, cols) : zero();
  } else if (src.row_stride == 1) {
    for (int i = 0; i < kWidth; ++i) block[i] = i < cols ? load_any(src.at(0, row, col + i), src.dtype, rows) : zero();
    transpose(block);
  } else {
    for (int i = 0; i < kWidth; ++i) {
      float lanes[kWidth] = {};
      for (int j = 0; j < kWidth && i < rows && j < cols; ++j) {
        store(lanes + j, load_any(src.at(0, row + i, col + j), src.dtype, 1), 1);
      }
      block[i] = load(lanes);
    }
  }
}

inline void pack(Panel kind, const Matrix& src, int64_t depth, int64_t cols, void* dst, int64_t panel_stride) {
  for (int64_t k = 0; k < depth; k += kWidth) {
    const int64_t rows = smaller(depth - k, kWidth);
    for (int64_t col = 0; col < panel_stride; col += kWidth) {
      Vec block[kWidth];
      load_block(src, k, col, rows, cols > col ? cols - col : 0, block);
      if (kind == Panel::kPairs) {
        float* out = static_cast<float*>(dst) + k / 2 * panel_stride + col;
        for (int i = 0; i < rows; i += 2) store(out + i / 2 * panel_stride, pair_bf16(block[i], block[i + 1]));
      } else {
        const Dtype dtype = kind == Panel::kHalf ? Dtype::kHalf : Dtype::kFloat;
        char* out = static_cast<char*>(dst) + (k * panel_stride + col) * size_of(dtype);
        for (int i = 0; i < rows; ++i) store_any(out + i * panel_stride * size_of(dtype), dtype, block[i], kWidth);
      }
    }
  }
}

inline void convert_row(const void* src, Dtype dtype, int64_t cols, bool to_bf16, void* dst) {
  const Dtype to = to_bf16 ? Dtype::kBFloat16 : Dtype::kFloat;
  const int64_t padded = round_up(cols, 2);
  for (int64_t col = 0; col < padded; col += kWidth) {
    const Vec v = load_any(static_cast<const char*>(src) + col * size_of(dtype), dtype, cols - col);
    store_any(static_cast<char*>(dst) + col * size_of(to), to, v, padded - col);
  }
}

inline void store_row(const float* c, const float* bias, int64_t cols, Dtype dtype, void* dst) {
  for (int64_t col = 0; col < cols; col += kWidth) {
    Vec v = load(c + col);
    if (bias) v = add(v, load(bias + col, cols - col));
    store_any(static_cast<char*>(dst) + col * size_of(dtype), dtype, v, cols - col);
  }
}

inline void store_transposed(const float* c, int64_t p, int64_t q, Dtype dtype, void* dst, int64_t dst_stride) {
  for (int64_t col = 0; col < q; col += kWidth) {
    Vec block[kWidth];
    for (int64_t i = 0; i < kWidth; ++i) block[i] = i < p ? load(c + i * kTileCols + col) : zero();
    transpose(block);
    for (int64_t i = 0; i < smaller(kWidth, q - col); ++i) {
      store_any(static_cast<char*>(dst) + (col + i) * dst_stride * size_of(dtype), dtype, block[i], p);
    }
  }
}

constexpr Kernels table(const char* name) {
#ifdef CORA_BF16_PAIRS
  const TileFn tile_bf16 = tile<Paired, Paired>;
  const bool bf16_pairs = true;
#else
  const TileFn tile_bf16 = tile<Widened<Panel::kPairs>, Widened<Panel::kFloat>>;
  const bool bf16_pairs = false;
#endif
  return {name,
          bf16_pairs,
          {tile<Widened<Panel::kFloat>, Widened<Panel::kFloat>>, tile_bf16,
           tile<Widened<Panel::kHalf>, Widened<Panel::kFloat>>},
          pack,
          convert_row,
          store_row,
          store_transposed};
}
