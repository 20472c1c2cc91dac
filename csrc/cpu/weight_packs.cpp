#include "weight_packs.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <cstring>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "lowrank_gemm.h"
#include "views.h"

namespace cora::cpu {
namespace {

using WeakTensor = c10::weak_intrusive_ptr<at::TensorImpl, at::UndefinedTensorImpl>;

struct Place {
  Matrix weight;
  int64_t rows, cols;
  bool transposed;
  Panel kind;
  const Kernels* kernels;

  bool operator==(const Place& other) const {
    return weight.data == other.weight.data && weight.dtype == other.weight.dtype &&
           weight.row_stride == other.weight.row_stride && weight.col_stride == other.weight.col_stride &&
           rows == other.rows && cols == other.cols && transposed == other.transposed && kind == other.kind &&
           kernels == other.kernels;
  }
};

struct Pack {
  Place place;
  uint32_t version;
  uint64_t sample;
  at::Tensor panels;
};

// The packs of one weight and of its views: GPT-2 hands a new view at every call. The weak reference keeps the key's
// address from being given to another tensor.
struct Packs {
  WeakTensor owner;
  std::vector<Pack> packs;
};

struct Store {
  std::mutex mutex;
  std::unordered_map<const at::TensorImpl*, Packs> owners;
  bool keep = true;
};

// Never destroyed: tensors must not outlive torch's own static objects.
Store& store() {
  static Store& store = *new Store;
  return store;
}

// A fingerprint of 64 elements spread over the matrix. Writes through `.data` (adapters are merged so) leave the
// version alone; this notices those that touch more than a few elements.
uint64_t sample_of(const Place& place) {
  constexpr int64_t kSamples = 64;
  uint64_t hash = 0;
  for (int64_t i = 0; i < kSamples; ++i) {
    uint32_t bits = 0;
    const void* element = place.weight.at(0, i * place.rows / kSamples, (i * 1009 + 17) % place.cols);
    std::memcpy(&bits, element, size_of(place.weight.dtype));
    hash = (hash ^ bits) * 0x100000001b3u;
  }
  return hash;
}

at::Tensor pack(const Place& place) {
  const Matrix source = place.transposed ? place.weight : place.weight.transposed();
  const int64_t depth = place.transposed ? place.rows : place.cols;
  const int64_t cols = place.transposed ? place.cols : place.rows;
  const int64_t panels = panels_of(cols);
  const int64_t bytes = panel_bytes(place.kind, depth);
  at::Tensor out = at::empty({panels * bytes}, at::kByte);
  char* data = static_cast<char*>(out.data_ptr());
  at::parallel_for(0, panels, 1, [&](int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; ++panel) {
      const int64_t col = panel * kTileCols;
      place.kernels->pack(place.kind, source.block(0, 0, col), depth, std::min<int64_t>(cols - col, kTileCols),
                          data + panel * bytes, kTileCols);
    }
  });
  return out;
}

}  // namespace

at::Tensor packed(const at::Tensor& weight, bool transposed, Dtype rows, const Kernels& kernels) {
  const Place place{matrix_of(weight), weight.size(0), weight.size(1), transposed, base_panel(rows), &kernels};
  // An inference tensor counts no versions.
  if (!store().keep || weight.is_inference()) return pack(place);

  const at::Tensor owner = weight.is_view() ? at::Tensor(weight._base()) : weight;
  const uint32_t version = weight._version();
  const uint64_t sample = sample_of(place);
  std::lock_guard<std::mutex> lock(store().mutex);
  auto& owners = store().owners;
  auto found = owners.find(owner.unsafeGetTensorImpl());
  if (found != owners.end()) {
    for (Pack& kept : found->second.packs) {
      if (!(kept.place == place)) continue;
      if (kept.version != version || kept.sample != sample) {
        kept.panels.reset();
        kept = {place, version, sample, pack(place)};
      }
      return kept.panels;
    }
  }
  // A weight met for the first time: a good moment to free what belonged to weights that are gone.
  std::erase_if(owners, [](const auto& entry) { return entry.second.owner.expired(); });
  found = owners.try_emplace(owner.unsafeGetTensorImpl(), Packs{WeakTensor(owner.getIntrusivePtr()), {}}).first;
  found->second.packs.push_back({place, version, sample, pack(place)});
  return found->second.packs.back().panels;
}

bool keep_packs(bool keep) {
  if (!keep) clear_packs();
  std::lock_guard<std::mutex> lock(store().mutex);
  return std::exchange(store().keep, keep);
}

void clear_packs() {
  std::lock_guard<std::mutex> lock(store().mutex);
  store().owners.clear();
}

int64_t packs_bytes() {
  std::lock_guard<std::mutex> lock(store().mutex);
  std::erase_if(store().owners, [](const auto& entry) { return entry.second.owner.expired(); });
  int64_t bytes = 0;
  for (const auto& [_, packs] : store().owners) {
    for (const Pack& pack : packs.packs)
      bytes += pack.panels.nbytes();
  }
  return bytes;
}

}  // namespace cora::cpu
