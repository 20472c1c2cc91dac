// The micro-kernels that exist in bf16 pairs alone. microkernel.inl includes this file.

// A panel of a weight and the 16 columns of a factor's, multiplied with the same rows. The factor's alone would read a
// broadcast for each product; beside three other vectors it costs what its products cost.
constexpr int kJointBlockRows = 6;

template <int MR>
void joint_block(const Strip* base, const Strip* low, int n, float scale, float* c, float* s, int64_t s_stride,
                 int64_t rank, int64_t row0) {
  Vec acc[MR][4];
#pragma GCC unroll 6
  for (auto& row : acc) {
#pragma GCC unroll 4
    for (Vec& sum : row)
      sum = zero();
  }
  for (int i = 0; i < n; ++i) {
    const uint16_t* rows = static_cast<const uint16_t*>(base[i].rows) + row0 * base[i].row_stride;
    const float* panel = static_cast<const float*>(base[i].panel);
    const float* factor = static_cast<const float*>(low[i].panel);
    for (int64_t k = 0; k < base[i].depth; k += 2, panel += kTileCols, factor += kWidth) {
      __m512bh b[4];
#pragma GCC unroll 3
      for (int v = 0; v < 3; ++v) {
        fetch_ahead<Role::kWeight>(panel + v * kWidth);
        b[v] = reinterpret_cast<__m512bh>(load(panel + v * kWidth));
      }
      b[3] = reinterpret_cast<__m512bh>(load(factor));
#pragma GCC unroll 6
      for (int m = 0; m < MR; ++m) {
        int32_t pair;
        std::memcpy(&pair, rows + m * base[i].row_stride + k, sizeof(pair));
        const __m512bh a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v)
          acc[m][v] = _mm512_dpbf16_ps(acc[m][v], a, b[v]);
      }
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 3
    for (int v = 0; v < 3; ++v)
      store(c + (row0 + m) * kTileCols + v * kWidth, acc[m][v]);
    store(s + (row0 + m) * s_stride, mul(acc[m][3], set1(scale)), rank);
  }
}

inline void joint(int rows, const Strip* base, const Strip* low, int n, float scale, float* c, float* s,
                  int64_t s_stride, int64_t rank) {
  static_assert(kTileCols == 3 * kWidth);
  constexpr decltype(&joint_block<1>) blocks[] = {joint_block<1>, joint_block<2>, joint_block<3>,
                                                  joint_block<4>, joint_block<5>, joint_block<kJointBlockRows>};
  // As equal as they can be: a block of one or two rows would wait for its own sums.
  for (int row = 0, left = (rows + kJointBlockRows - 1) / kJointBlockRows; left > 0; --left) {
    const int mr = (rows - row + left - 1) / left;
    blocks[mr - 1](base, low, n, scale, c, s, s_stride, rank, row);
    row += mr;
  }
}

// A sum over rows that are read in place, two of them paired on the way: packing them first would cost as much as two
// thirds of the products.
constexpr int kOuterRows = 8;
constexpr int kOuterVecs = kTileCols / kWidth;

// How many columns of vector v there are.
inline int64_t columns_of(int v, int64_t cols) { return cols > v * kWidth ? cols - v * kWidth : 0; }

// Up to 48 columns of two rows, side by side.
template <bool whole>
inline void pair_columns(const uint16_t* even, const uint16_t* odd, int64_t cols, Vec (&pairs)[kOuterVecs]) {
  static_assert(kOuterVecs == 3);
  if constexpr (whole) {
    Vec two[2];
    pair_rows(even, odd, two);
    pairs[0] = two[0];
    pairs[1] = two[1];
    pairs[2] = pair_rows(even + 2 * kWidth, odd + 2 * kWidth, kWidth);
  } else {
#pragma GCC unroll 3
    for (int v = 0; v < kOuterVecs; ++v)
      pairs[v] = pair_rows(even + v * kWidth, odd + v * kWidth, columns_of(v, cols));
  }
}

template <int MR, bool whole>
void outer_block(const float* narrow, int64_t narrow_stride, const uint16_t* wide, int64_t wide_stride, int64_t ahead,
                 int64_t depth, int64_t cols, bool add, float* c) {
  Vec acc[MR][kOuterVecs];
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 3
    for (int v = 0; v < kOuterVecs; ++v)
      acc[m][v] = add ? load(c + m * kTileCols + v * kWidth) : zero();
  }
  const auto step = [&](const Vec(&pairs)[kOuterVecs]) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      const __m512bh a = reinterpret_cast<__m512bh>(set1(narrow[m]));
#pragma GCC unroll 3
      for (int v = 0; v < kOuterVecs; ++v)
        acc[m][v] = _mm512_dpbf16_ps(acc[m][v], a, reinterpret_cast<__m512bh>(pairs[v]));
    }
  };
  Vec pairs[kOuterVecs];
  for (; depth > 1; depth -= 2, narrow += narrow_stride, wide += 2 * wide_stride) {
    const uint16_t* next = wide + ahead;
    for (const uint16_t* row : {next, next + wide_stride}) {
      __builtin_prefetch(row);
      __builtin_prefetch(row + kTileCols - 1);
    }
    pair_columns<whole>(wide, wide + wide_stride, cols, pairs);
    step(pairs);
  }
  if (depth == 1) {
#pragma GCC unroll 3
    for (int v = 0; v < kOuterVecs; ++v)
      pairs[v] = pair_bf16(load_bf16(wide + v * kWidth, columns_of(v, cols)), zero());
    step(pairs);
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 3
    for (int v = 0; v < kOuterVecs; ++v)
      store(c + m * kTileCols + v * kWidth, acc[m][v]);
  }
}

template <bool whole, class = std::make_integer_sequence<int, kOuterRows>>
struct OuterBlocks;
template <bool whole, int... I>
struct OuterBlocks<whole, std::integer_sequence<int, I...>> {
  static constexpr decltype(&outer_block<1, whole>) table[] = {outer_block<I + 1, whole>...};
};

inline void outer(const void* narrow, int64_t narrow_stride, int64_t narrow_cols, const void* wide, int64_t wide_stride,
                  int64_t ahead, int64_t depth, int64_t cols, bool add, float* c) {
  const auto& blocks = cols == kTileCols ? OuterBlocks<true>::table : OuterBlocks<false>::table;
  for (int64_t m = 0; m < narrow_cols; m += kOuterRows) {
    blocks[smaller(narrow_cols - m, kOuterRows) - 1](static_cast<const float*>(narrow) + m, narrow_stride,
                                                     static_cast<const uint16_t*>(wide), wide_stride, ahead, depth,
                                                     cols, add, c + m * kTileCols);
  }
}
