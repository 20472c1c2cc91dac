// A weight in the panels that the micro-kernels read: 48 columns each, [depth][48], one panel after the other; packed
// from the weight's present elements for one call, into memory that later calls use again.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

#include "kernels.h"
#include "lowrank_gemm.h"

namespace cora::cpu {

// Packs weight [depth x cols] into `out`, which has room for all panels; by the threads together.
void pack_panels(Panel kind, const Matrix& weight, int64_t depth, int64_t cols, const Kernels& kernels, char* out);

// The panels of all weights of a call that have none. They live as long as this object.
class PanelsOfCall {
 public:
  PanelsOfCall() = default;
  PanelsOfCall(const PanelsOfCall&) = delete;
  ~PanelsOfCall();

  // Packs them, and sets each BaseTerm's `panels`.
  void pack(LowRankGemm& gemm, const Kernels& kernels);

  struct Buffer {
    struct Free {
      void operator()(char* p) const { ::operator delete(p, std::align_val_t{64}); }
    };
    std::unique_ptr<char, Free> data;
    int64_t size = 0;
  };

 private:
  Buffer buffer_;
};

// Frees the memory that waits for later calls.
void free_panel_memory();

}  // namespace cora::cpu
