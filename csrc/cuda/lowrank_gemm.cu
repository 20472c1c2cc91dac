#include <algorithm>
#include <iterator>

#include "lowrank_gemm.cuh"

namespace cora::gpu {
namespace {

struct Size {
  int BM;
  int BN;
};

// Two blocks or more share a multiprocessor, so that one computes while another stores; the last size is for few rows.
// Registers hold S beside a tile of 128 x 128 up to rank 16.
constexpr Size kSizes[] = {{128, 128}, {64, 64}, {16, 128}};
constexpr Size kSizesBesideWideS[] = {{64, 128}, {64, 64}, {16, 128}};

int tiles_of(const LowRankGemm& gemm, Size size) {
  const int n_m = gemm.a.data ? slots_of(gemm.segments, size.BM) : cdiv(gemm.segments.rows, size.BM);
  return n_m * cdiv(gemm.cols, size.BN);
}

template <typename C>
cudaError_t launch(const LowRankGemm& gemm, cudaStream_t stream) {
  return launch_kernel(lowrank_gemm_kernel<C>, tiles_of(gemm, {C::BM, C::BN}), C::kShared, gemm, stream);
}

template <typename T, int R, bool BACKWARD>
cudaError_t launch(const LowRankGemm& gemm, Size size, cudaStream_t stream) {
  if (size.BM == 16) return launch<GemmTile<T, 16, 128, 64, 1, 4, 3, R, BACKWARD>>(gemm, stream);
  if (size.BN == 64) return launch<GemmTile<T, 64, 64, 64, 2, 2, 3, R, BACKWARD>>(gemm, stream);
  return launch<GemmTile<T, R <= 16 ? 128 : 64, 128, 32, 2, 2, 4, R, BACKWARD>>(gemm, stream);
}

template <typename T, int R>
cudaError_t launch(const LowRankGemm& gemm, Size size, cudaStream_t stream) {
  return gemm.backward ? launch<T, R, true>(gemm, size, stream) : launch<T, R, false>(gemm, size, stream);
}

template <typename T>
cudaError_t launch(const LowRankGemm& gemm, Size size, cudaStream_t stream) {
  if (!gemm.a.data) return launch<T, 0>(gemm, size, stream);
  return gemm.rank <= 16 ? launch<T, 16>(gemm, size, stream) : launch<T, 32>(gemm, size, stream);
}

}  // namespace

cudaError_t run(const LowRankGemm& gemm, Dtype dtype, int multiprocessors, cudaStream_t stream) {
  // The cost counts whole waves of tiles, at the share of the matrix rate that a tile of this area reaches: the rule of
  // cora_kernels/planning/choose.py.
  const auto cost = [&](Size size) {
    return int64_t(cdiv(tiles_of(gemm, size), multiprocessors)) * (size.BM * size.BN + 1024);
  };
  const auto& sizes = gemm.a.data && gemm.rank > 16 ? kSizesBesideWideS : kSizes;
  const Size size = *std::min_element(std::begin(sizes), std::end(sizes),
                                      [&](Size left, Size right) { return cost(left) < cost(right); });
  return dtype == Dtype::kHalf ? launch<__half>(gemm, size, stream) : launch<__nv_bfloat16>(gemm, size, stream);
}

}  // namespace cora::gpu
