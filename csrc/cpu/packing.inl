// Packing and conversion between dtypes, over the vector type of simd_*.inl. instruction_set.inl includes it.

template <class A, class B>
constexpr int64_t smaller(A a, B b) {
  return a < b ? a : b;
}

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

// How far ahead columns, in bytes, and rows are asked for: a panel is packed from more columns than the processor
// follows by itself, and of long rows only a short stretch is read.
constexpr int64_t kColumnAhead = 512;
constexpr int64_t kPackedAhead = 16;

// Columns so many bytes apart share their place in L1, which has room for fewer of them than a block has: each line is
// read once then, in whole vectors.
constexpr int64_t kCrowdedStride = 4096;

// block[i] = src[row + i, col : col + width], zero outside rows x cols.
inline void load_block(const Matrix& src, int64_t row, int64_t col, int64_t rows, int64_t cols, Vec (&block)[kWidth]) {
  if (src.col_stride == 1) {
    for (int i = 0; i < kWidth; ++i) {
      __builtin_prefetch(src.at(0, row + i + kPackedAhead, col));
      block[i] = i < rows ? load_any(src.at(0, row + i, col), src.dtype, cols) : zero();
    }
  } else if (src.row_stride == 1) {
    if (src.dtype == Dtype::kFloat && rows >= kWidth && cols >= kWidth) {
      const float* data = static_cast<const float*>(src.at(0, row, col));
      for (int i = 0; i < kWidth; ++i)
        __builtin_prefetch(reinterpret_cast<const char*>(data + i * src.col_stride) + kColumnAhead);
      if (src.col_stride * 4 % kCrowdedStride != 0) return load_columns(data, src.col_stride, block);
    }
    const auto column = [&](int64_t i) {
      return i < cols ? load_any(src.at(0, row, col + i), src.dtype, rows) : zero();
    };
    if (rows <= kWidth / 2) {
      for (int i = 0; i < kWidth / 2; ++i)
        block[i] = join_halves(column(i), column(i + kWidth / 2));
      transpose<kWidth / 2>(block);
    } else {
      for (int i = 0; i < kWidth; ++i)
        block[i] = column(i);
      transpose<kWidth>(block);
    }
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

inline void pack_bf16_rows(const Matrix& src, int64_t depth, int64_t cols, float* dst, int64_t panel_stride) {
  const uint16_t* even = static_cast<const uint16_t*>(src.data);
  for (int64_t k = 0; k < depth; k += 2, even += 2 * src.row_stride, dst += panel_stride) {
    const uint16_t* odd = even + src.row_stride;
    for (const uint16_t* row : {even, odd}) {
      __builtin_prefetch(row + kPackedAhead * src.row_stride);
      __builtin_prefetch(row + kPackedAhead * src.row_stride + kTileCols - 1);
    }
    int64_t col = 0;
    for (; k + 1 < depth && col + 2 * kWidth <= cols; col += 2 * kWidth) {
      Vec pairs[2];
      pair_rows(even + col, odd + col, pairs);
      store(dst + col, pairs[0]);
      store(dst + col + kWidth, pairs[1]);
    }
    for (; col < cols; col += kWidth) {
      const int64_t n = cols - col;
      store(dst + col,
            k + 1 < depth ? pair_rows(even + col, odd + col, n) : pair_bf16(load_bf16(even + col, n), zero()));
    }
    for (int64_t col = round_up(cols, kWidth); col < panel_stride; col += kWidth)
      store(dst + col, zero());
  }
}

inline void pack(Panel kind, const Matrix& src, int64_t depth, int64_t cols, void* dst, int64_t panel_stride) {
  if (kind == Panel::kPairs && src.dtype == Dtype::kBFloat16) {
    if (src.row_stride == 1 && src.col_stride % 2 == 0 && depth % 2 == 0) {
      // The pairs lie ready, as the elements of a matrix twice as wide.
      return pack(Panel::kFloat, {src.data, Dtype::kFloat, 1, src.col_stride / 2}, depth / 2, cols, dst, panel_stride);
    }
    if (src.col_stride == 1) return pack_bf16_rows(src, depth, cols, static_cast<float*>(dst), panel_stride);
  }
  for (int64_t k = 0; k < depth; k += kWidth) {
    const int64_t rows = smaller(depth - k, kWidth);
    for (int64_t col = 0; col < panel_stride; col += kWidth) {
      Vec block[kWidth];
      load_block(src, k, col, rows, cols > col ? cols - col : 0, block);
      if (kind == Panel::kPairs) {
        float* out = static_cast<float*>(dst) + k / 2 * panel_stride + col;
        for (int i = 0; i < rows; i += 2)
          store(out + i / 2 * panel_stride, pair_bf16(block[i], block[i + 1]));
      } else {
        const Dtype dtype = kind == Panel::kHalf ? Dtype::kHalf : Dtype::kFloat;
        char* out = static_cast<char*>(dst) + (k * panel_stride + col) * size_of(dtype);
        for (int i = 0; i < rows; ++i)
          store_any(out + i * panel_stride * size_of(dtype), dtype, block[i], kWidth);
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

inline void store_row(const float* c, int64_t cols, Dtype dtype, void* dst) {
  for (int64_t col = 0; col < cols; col += kWidth) {
    store_any(static_cast<char*>(dst) + col * size_of(dtype), dtype, load(c + col), cols - col);
  }
}

inline void store_transposed(const float* c, int64_t p, int64_t q, Dtype dtype, void* dst, int64_t dst_stride) {
  for (int64_t row = 0; row < p; row += kWidth) {
    for (int64_t col = 0; col < q; col += kWidth) {
      Vec block[kWidth];
      for (int64_t i = 0; i < kWidth; ++i)
        block[i] = row + i < p ? load(c + (row + i) * kTileCols + col) : zero();
      transpose<kWidth>(block);
      char* out = static_cast<char*>(dst) + (col * dst_stride + row) * size_of(dtype);
      for (int64_t i = 0; i < smaller(kWidth, q - col); ++i) {
        store_any(out + i * dst_stride * size_of(dtype), dtype, block[i], p - row);
      }
    }
  }
}
