// The micro-kernels, written once over the vector type that simd_*.inl defines. instruction_set.inl includes this file
// in a target region and an unnamed namespace, so one binary holds all instruction sets. No std function is called
// here: its instantiation would be shared by all of them and might carry the wrong instructions.

// What the panel of a strip belongs to. A weight's panel is 48 wide; its rows are read once for every eight rows of the
// tile, from L2 or L3, and asked for 32 rows early (worth 2 to 5 % on Zen 4). A factor's panel is as wide as its strip
// says, perhaps rows of x in place; of these the next 48 columns are asked for, which are the next tile's.
enum class Role { kWeight, kFactor };
constexpr int64_t kRowsAhead = 32;

template <Role role>
int64_t panel_stride(const Strip& strip) {
  return role == Role::kWeight ? kTileCols : strip.panel_stride;
}

template <Role role, class T>
void fetch_ahead(const T* panel) {
  __builtin_prefetch(panel + (role == Role::kWeight ? kRowsAhead : 1) * kTileCols);
}

// Products: how one strip is multiplied into the accumulators [MR rows x NV vectors].

// fp32 rows times a panel of fp32, fp16 or pairs of bf16, widened on load.
template <Panel kind, Role role>
struct Widened {
  static constexpr Dtype kDtype = kind == Panel::kFloat  ? Dtype::kFloat
                                  : kind == Panel::kHalf ? Dtype::kHalf
                                                         : Dtype::kBFloat16;

  template <int MR, int NV>
  [[gnu::always_inline]] static void accumulate(const Strip& strip, Vec (&acc)[MR][NV], int64_t row0, int64_t col0) {
    const float* rows = static_cast<const float*>(strip.rows) + row0 * strip.row_stride;
    if constexpr (kind == Panel::kPairs) {
      const float* panel = static_cast<const float*>(strip.panel) + col0;
#pragma GCC unroll 2
      for (int64_t k = 0; k < strip.depth; k += 2, panel += panel_stride<role>(strip)) {
        Vec b[NV];
        for (int v = 0; v < NV; ++v) {
          fetch_ahead<role>(panel + v * kWidth);
          b[v] = even_bf16(load(panel + v * kWidth));
        }
        step(rows + k, strip.row_stride, b, acc);
        for (int v = 0; v < NV; ++v)
          b[v] = odd_bf16(load(panel + v * kWidth));
        step(rows + k + 1, strip.row_stride, b, acc);
      }
    } else {
      using Element = std::conditional_t<kind == Panel::kFloat, float, uint16_t>;
      const Element* panel = static_cast<const Element*>(strip.panel) + col0;
#pragma GCC unroll 4
      for (int64_t k = 0; k < strip.depth; ++k, panel += panel_stride<role>(strip)) {
        Vec b[NV];
        for (int v = 0; v < NV; ++v) {
          fetch_ahead<role>(panel + v * kWidth);
          if constexpr (kind == Panel::kFloat) b[v] = load(panel + v * kWidth);
          if constexpr (kind == Panel::kHalf) b[v] = load_half(panel + v * kWidth);
        }
        step(rows + k, strip.row_stride, b, acc);
      }
    }
  }

  // The depths [begin, begin + depth) of a base strip; begin is even.
  static Strip part(const Strip& strip, int64_t begin, int64_t depth) {
    return {static_cast<const float*>(strip.rows) + begin, strip.row_stride,
            static_cast<const char*>(strip.panel) + panel_bytes(kind, begin), strip.panel_stride, depth};
  }

  template <int MR, int NV>
  [[gnu::always_inline]] static void step(const float* rows, int64_t row_stride, const Vec (&b)[NV],
                                          Vec (&acc)[MR][NV]) {
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
      const Vec a = set1(rows[m * row_stride]);
#pragma GCC unroll 3
      for (int v = 0; v < NV; ++v)
        acc[m][v] = fma(a, b[v], acc[m][v]);
    }
  }
};

#ifdef CORA_BF16_PAIRS
// bf16 rows times a panel of bf16 pairs: two depths an instruction.
template <Role role>
struct Paired {
  static constexpr Dtype kDtype = Dtype::kBFloat16;

  template <int MR, int NV>
  [[gnu::always_inline]] static void accumulate(const Strip& strip, Vec (&acc)[MR][NV], int64_t row0, int64_t col0) {
    const uint16_t* rows = static_cast<const uint16_t*>(strip.rows) + row0 * strip.row_stride;
    const float* panel = static_cast<const float*>(strip.panel) + col0;
    for (int64_t k = 0; k < strip.depth; k += 2, panel += panel_stride<role>(strip)) {
      __m512bh b[NV];
      for (int v = 0; v < NV; ++v) {
        fetch_ahead<role>(panel + v * kWidth);
        b[v] = reinterpret_cast<__m512bh>(load(panel + v * kWidth));
      }
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m) {
        int32_t pair;
        std::memcpy(&pair, rows + m * strip.row_stride + k, sizeof(pair));
        const __m512bh a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
#pragma GCC unroll 3
        for (int v = 0; v < NV; ++v)
          acc[m][v] = _mm512_dpbf16_ps(acc[m][v], a, b[v]);
      }
    }
  }
};
#endif

// The tile.

// Everything that touches the accumulators is inlined: they have no address then, and stay in registers.
template <Dtype dtype, int MR, int NV>
[[gnu::always_inline]] inline void store_block(Vec (&acc)[MR][NV], const Destination& to, int64_t row0, int64_t col0,
                                               int64_t cols) {
  const Vec scale = set1(to.scale);
  const int64_t stride = to.stride;
  const bool as_is = to.scale == 1.f && !to.bias;
  char* out = static_cast<char*>(to.data) + (row0 * stride + col0) * size_of(dtype);
#pragma GCC unroll 3
  for (int v = 0; v < NV; ++v) {
    const int64_t n = cols - col0 - v * kWidth;
    if (!as_is) {
      const Vec bias = to.bias ? load(to.bias + col0 + v * kWidth, n) : zero();
#pragma GCC unroll 8
      for (int m = 0; m < MR; ++m)
        acc[m][v] = fma(acc[m][v], scale, bias);
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m)
      store_any(out + (m * stride + v * kWidth) * size_of(dtype), dtype, acc[m][v], n);
  }
}

template <class Base, class Low, int MR, int NV>
[[gnu::always_inline]] inline void block(const Strip* base, int n_base, const Strip* low, int n_low, bool add, float* c,
                                         const Destination* to, int64_t row0, int64_t col0, int64_t cols) {
  Vec acc[MR][NV];
  float* tile = c + row0 * kTileCols + col0;
#pragma GCC unroll 8
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 3
    for (int v = 0; v < NV; ++v)
      acc[m][v] = add ? load(tile + m * kTileCols + v * kWidth) : zero();
  }
  for (int i = 0; i < n_base; ++i)
    Base::accumulate(base[i], acc, row0, col0);
  for (int i = 0; i < n_low; ++i)
    Low::accumulate(low[i], acc, row0, col0);
  if (!to) {
#pragma GCC unroll 8
    for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 3
      for (int v = 0; v < NV; ++v)
        store(tile + m * kTileCols + v * kWidth, acc[m][v]);
    }
  } else if (to->in_fp32) {
    store_block<Dtype::kFloat>(acc, *to, row0, col0, cols);
  } else {
    store_block<Base::kDtype>(acc, *to, row0, col0, cols);
  }
}

// Blocks one below the other.
template <class Base, class Low, int MR, int NV>
void column(const Strip* base, int n_base, const Strip* low, int n_low, bool add, float* c, const Destination* to,
            int64_t row0, int64_t end, int64_t col0, int64_t cols) {
  for (; row0 < end; row0 += MR)
    block<Base, Low, MR, NV>(base, n_base, low, n_low, add, c, to, row0, col0, cols);
}

using BlockFn = void (*)(const Strip*, int, const Strip*, int, bool, float*, const Destination*, int64_t, int64_t,
                         int64_t, int64_t);

template <class Base, class Low, class = std::make_integer_sequence<int, kBlockRows * kBlockVecs>>
struct Blocks;
template <class Base, class Low, int... I>
struct Blocks<Base, Low, std::integer_sequence<int, I...>> {
  static constexpr BlockFn table[] = {column<Base, Low, I / kBlockVecs + 1, I % kBlockVecs + 1>...};
};

// All of the depth in one go.
template <class Base, class Low>
void whole(int rows, int cols, const Strip* base, int n_base, const Strip* low, int n_low, bool add, float* c,
           const Destination* to) {
  const int vecs = (cols + kWidth - 1) / kWidth;
  // As equal as they can be: a block of one vector alone would wait for its own sums.
  for (int vec = 0, left = (vecs + kBlockVecs - 1) / kBlockVecs, nv; left > 0; --left, vec += nv) {
    nv = (vecs - vec + left - 1) / left;
    for (int row = 0, end; row < rows; row = end) {
      const int mr = smaller(rows - row, kBlockRows);
      end = row + (rows - row) / mr * mr;
      Blocks<Base, Low>::table[(mr - 1) * kBlockVecs + nv - 1](base, n_base, low, n_low, add, c, to, row, end,
                                                               vec * kWidth, cols);
    }
  }
}

// The base strips part by part along the depth: the part of a panel stays in L1 for all rows, whose sums wait in c.
template <class Base, class Low>
void in_parts(int rows, int cols, const Strip* base, int n_base, const Strip* low, int n_low, bool add, float* c,
              const Destination* to) {
  for (int i = 0; i < n_base; ++i) {
    const int64_t depth = base[i].depth, step = even_share(depth, kPartDepth, 4);
    int64_t k = 0;
    do {
      const bool last = i + 1 == n_base && k + step >= depth;
      const Strip part = Base::part(base[i], k, smaller(step, depth - k));
      whole<Base, Low>(rows, cols, &part, 1, low, last ? n_low : 0, add, c, last ? to : nullptr);
      add = true;
      k += step;
    } while (k < depth);
  }
}

template <class Base, class Low>
void tile(int rows, int cols, const Strip* base, int n_base, const Strip* low, int n_low, bool add, float* c,
          const Destination* to) {
  if constexpr (kPartDepth > 0) {
    if (n_base > 0 && rows > kTileRows) return in_parts<Base, Low>(rows, cols, base, n_base, low, n_low, add, c, to);
  }
  whole<Base, Low>(rows, cols, base, n_base, low, n_low, add, c, to);
}

#ifdef CORA_BF16_PAIRS
#include "bf16_pairs.inl"
#endif

// One row.

// How far ahead of one row's arithmetic, which is quick, its factor is asked for: it comes from L3 or memory.
constexpr int64_t kBytesAhead = 1024;

// Four depths at a time, summed apart: one row alone would wait for every addition.
template <Dtype dtype, int NV>
void row_block(const float* row, const Matrix& factor, int64_t depth, int64_t cols, bool add_to, float* out) {
  constexpr int kChains = 4;
  const char* panel = static_cast<const char*>(factor.data);
  const int64_t stride = factor.row_stride * size_of(dtype);
  Vec acc[kChains][NV];
#pragma GCC unroll 4
  for (int i = 0; i < kChains; ++i) {
#pragma GCC unroll 3
    for (int v = 0; v < NV; ++v)
      acc[i][v] = zero();
  }
  const auto step = [&](int64_t k, Vec(&chain)[NV]) __attribute__((always_inline)) {
    const char* data = panel + k * stride;
    __builtin_prefetch(data + kBytesAhead);
#pragma GCC unroll 3
    for (int v = 0; v < NV; ++v) {
      chain[v] = fma(set1(row[k]), load_any(data + v * kWidth * size_of(dtype), dtype, cols - v * kWidth), chain[v]);
    }
  };
  int64_t k = 0;
  for (; k + kChains <= depth; k += kChains) {
#pragma GCC unroll 4
    for (int i = 0; i < kChains; ++i)
      step(k + i, acc[i]);
  }
  for (; k < depth; ++k)
    step(k, acc[0]);
#pragma GCC unroll 3
  for (int v = 0; v < NV; ++v) {
    const Vec sum = add(add(acc[0][v], acc[1][v]), add(acc[2][v], acc[3][v]));
    float* to = out + v * kWidth;
    store(to, add_to ? add(load(to, cols - v * kWidth), sum) : sum, cols - v * kWidth);
  }
}

template <Dtype dtype>
void row_blocks(const float* row, Matrix factor, int64_t depth, int64_t cols, bool add, float* out) {
  constexpr int64_t kCols = kBlockVecs * kWidth;
  for (int64_t col = 0; col < cols; col += kCols) {
    const int64_t n = smaller(cols - col, kCols);
    const Matrix block = factor.block(0, 0, col);
    if (n > 2 * kWidth) {
      row_block<dtype, 3>(row, block, depth, n, add, out + col);
    } else if (n > kWidth) {
      row_block<dtype, 2>(row, block, depth, n, add, out + col);
    } else {
      row_block<dtype, 1>(row, block, depth, n, add, out + col);
    }
  }
}

inline void row_product(const float* row, const Matrix& factor, int64_t depth, int64_t cols, bool by_row, bool add,
                        float* out) {
  const int64_t depths = by_row ? 4 : depth;
  for (int64_t k = 0; k < depth; k += depths) {
    const Matrix rows = factor.block(0, k, 0);
    const int64_t n = smaller(depths, depth - k);
    switch (factor.dtype) {
      case Dtype::kFloat: row_blocks<Dtype::kFloat>(row + k, rows, n, cols, add || k > 0, out); break;
      case Dtype::kHalf: row_blocks<Dtype::kHalf>(row + k, rows, n, cols, add || k > 0, out); break;
      default: row_blocks<Dtype::kBFloat16>(row + k, rows, n, cols, add || k > 0, out);
    }
  }
}

constexpr Kernels table(const char* name) {
  using Factor = Widened<Panel::kFloat, Role::kFactor>;
#ifdef CORA_BF16_PAIRS
  const TileFn tile_bf16 = tile<Paired<Role::kWeight>, Paired<Role::kFactor>>;
  const bool bf16_pairs = true;
  const JointFn jointly = joint;
  const OuterFn outer_in_place = outer;
#else
  const TileFn tile_bf16 = tile<Widened<Panel::kPairs, Role::kWeight>, Factor>;
  const bool bf16_pairs = false;
  const JointFn jointly = nullptr;
  const OuterFn outer_in_place = nullptr;
#endif
  return {name,
          bf16_pairs,
          {tile<Widened<Panel::kFloat, Role::kWeight>, Factor>, tile_bf16,
           tile<Widened<Panel::kHalf, Role::kWeight>, Factor>},
          jointly,
          outer_in_place,
          row_product,
          nullptr,
          nullptr,
          pack,
          convert_row,
          store_row,
          store_transposed,
          softmax,
          softmax_backward,
          turn,
          rms_norm,
          rms_norm_backward,
          silu_gate,
          silu_gate_backward,
          rotary};
}
