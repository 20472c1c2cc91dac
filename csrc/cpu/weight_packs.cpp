#include "weight_packs.h"

#include <ATen/ops/empty.h>

#include <cstring>
#include <iterator>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "lowrank_gemm.h"
#include "panels.h"
#include "views.h"

namespace cora::cpu {
namespace {

// What a pack was made of. A call whose weight is described otherwise has it made again.
struct Source {
  Matrix weight;
  int64_t rows, cols;
  const Kernels* kernels;
  uint32_t version;
  uint64_t sample;

  bool operator==(const Source& other) const {
    return weight.data == other.weight.data && weight.dtype == other.weight.dtype &&
           weight.row_stride == other.weight.row_stride && weight.col_stride == other.weight.col_stride &&
           rows == other.rows && cols == other.cols && kernels == other.kernels && version == other.version &&
           sample == other.sample;
  }
};

// A fingerprint of 64 elements spread over the matrix. Writes through `.data` and NumPy leave the version alone; this
// notices those that touch more than a few elements.
uint64_t sample_of(const Matrix& weight, int64_t rows, int64_t cols) {
  constexpr int64_t kSamples = 64;
  uint64_t hash = 0;
  for (int64_t i = 0; i < kSamples; ++i) {
    uint32_t bits = 0;
    std::memcpy(&bits, weight.at(0, i * rows / kSamples, (i * 1009 + 17) % cols), size_of(weight.dtype));
    hash = (hash ^ bits) * 0x100000001b3u;
  }
  return hash;
}

// One pack. Its lock is held while it is made, so that threads that need it wait for it instead of making their own;
// nobody asks for the lock of the owners meanwhile.
class Pack {
 public:
  Pack(bool transposed, Panel kind) : transposed(transposed), kind(kind) {}

  const bool transposed;
  const Panel kind;

  // The panels, if they are those of this source.
  at::Tensor find(const Source& source) {
    std::lock_guard<std::mutex> lock(mutex_);
    return panels_.defined() && source_ == source ? panels_ : at::Tensor();
  }

  // The panels, made unless another thread was faster.
  at::Tensor make(const Source& source) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (panels_.defined() && source_ == source) return panels_;
    const Matrix weight = transposed ? source.weight : source.weight.transposed();
    const int64_t depth = transposed ? source.rows : source.cols;
    const int64_t cols = transposed ? source.cols : source.rows;
    const int64_t bytes = panels_of(cols) * panel_bytes(kind, depth);
    // Never two copies; and none at all, should the new one not fit.
    if (!panels_.defined() || panels_.use_count() > 1 || panels_.numel() != bytes) {
      panels_.reset();
      panels_ = at::empty({bytes}, at::kByte);
    }
    source_ = source;
    pack_panels(kind, weight, depth, cols, *source.kernels, static_cast<char*>(panels_.mutable_data_ptr()));
    return panels_;
  }

  // Frees the panels if they were made of other memory than the weight's present one. One that is being made is not.
  void free_if_moved(const at::Tensor& weight) {
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock && panels_.defined() && (source_.weight.data != weight.const_data_ptr() || !has_memory(weight))) {
      panels_.reset();
    }
  }

  int64_t bytes() {
    std::lock_guard<std::mutex> lock(mutex_);
    return panels_.defined() ? panels_.numel() : 0;
  }

 private:
  // Sharding gives the memory of a tensor back and leaves the tensor as it was.
  static bool has_memory(const at::Tensor& weight) {
    return weight.storage().nbytes() >= size_t(weight.storage_offset() + weight.numel()) * weight.element_size();
  }

  std::mutex mutex_;
  Source source_;
  at::Tensor panels_;
};

using PackOf = std::shared_ptr<Pack>;
using WeakTensor = c10::weak_intrusive_ptr<at::TensorImpl, at::UndefinedTensorImpl>;

// A weight whose packs are kept. The weak reference keeps its address from being given to another tensor.
struct Owner {
  WeakTensor weight;
  int64_t times_asked;
  std::vector<PackOf> packs;
};

// Nobody refers to a weight or lets go of one while he holds the lock: that may take Python's lock, whose holder may be
// waiting for this one.
struct Owners {
  std::mutex mutex;
  std::unordered_map<const at::TensorImpl*, Owner> all;
};

// Never destroyed: tensors must not outlive torch's own static objects.
Owners& owners() {
  static Owners& owners = *new Owners;
  return owners;
}

// Frees what belongs to weights that are gone and to memory that they no longer have, and returns the packs left.
std::vector<PackOf> living_packs() {
  std::vector<std::pair<WeakTensor, PackOf>> all;
  {
    std::lock_guard<std::mutex> lock(owners().mutex);
    auto& known = owners().all;
    // C++17 has no erase_if, and torch 2.6 compiles as that.
    for (auto entry = known.begin(); entry != known.end();)
      entry = entry->second.weight.expired() ? known.erase(entry) : std::next(entry);
    for (const auto& [_, owner] : known) {
      for (const PackOf& pack : owner.packs)
        all.emplace_back(owner.weight, pack);
    }
  }
  std::vector<PackOf> living;
  for (const auto& [weak, pack] : all) {
    auto weight = weak.lock();
    if (!weight) continue;
    pack->free_if_moved(at::Tensor(std::move(weight)));
    living.push_back(pack);
  }
  return living;
}

// Whether the view shows all of the tensor, as a transpose does.
bool shows_all(const at::Tensor& view, const at::Tensor& tensor) {
  return view.numel() == tensor.numel() && view.const_data_ptr() == tensor.const_data_ptr();
}

// The pack of this weight or of the one that it is a view of, if that is kept; new and empty, if it was never made.
PackOf pack_of(const at::Tensor& weight, bool transposed, Panel kind) {
  at::Tensor base;
  if (weight.is_view()) base = at::Tensor(weight._base());
  std::lock_guard<std::mutex> lock(owners().mutex);
  auto& all = owners().all;
  if (all.empty()) return nullptr;
  auto found = all.find(weight.unsafeGetTensorImpl());
  if (found == all.end() && base.defined() && shows_all(weight, base)) found = all.find(base.unsafeGetTensorImpl());
  if (found == all.end()) return nullptr;
  for (const PackOf& pack : found->second.packs) {
    if (pack->transposed == transposed && pack->kind == kind) return pack;
  }
  return found->second.packs.emplace_back(std::make_shared<Pack>(transposed, kind));
}

}  // namespace

int64_t keep_packed(const at::Tensor& weight) {
  const at::TensorImpl* impl = weight.unsafeGetTensorImpl();
  Owner owner{WeakTensor(weight.getIntrusivePtr()), 0, {}};
  std::lock_guard<std::mutex> lock(owners().mutex);
  ++owners().all.try_emplace(impl, std::move(owner)).first->second.times_asked;
  return reinterpret_cast<int64_t>(impl);
}

std::optional<int64_t> release_packed(const at::Tensor& weight) {
  std::lock_guard<std::mutex> lock(owners().mutex);
  auto& all = owners().all;
  const auto found = all.find(weight.unsafeGetTensorImpl());
  if (found == all.end() || --found->second.times_asked > 0) return std::nullopt;
  all.erase(found);
  return reinterpret_cast<int64_t>(weight.unsafeGetTensorImpl());
}

void forget_packed(int64_t owner) {
  std::lock_guard<std::mutex> lock(owners().mutex);
  owners().all.erase(reinterpret_cast<const at::TensorImpl*>(owner));
}

void refresh_packed(const at::Tensor& weight) {
  std::lock_guard<std::mutex> lock(owners().mutex);
  const auto found = owners().all.find(weight.unsafeGetTensorImpl());
  if (found != owners().all.end()) found->second.packs.clear();
}

at::Tensor kept_panels(const at::Tensor& weight, bool transposed, Dtype rows, const Kernels& kernels) {
  // An inference tensor counts no versions.
  if (weight.is_inference()) return {};
  const PackOf pack = pack_of(weight, transposed, base_panel(rows));
  if (!pack) return {};
  const Matrix matrix = matrix_of(weight);
  const int64_t n = weight.size(0), k = weight.size(1);
  const Source source{matrix, n, k, &kernels, uint32_t(weight._version()), sample_of(matrix, n, k)};
  const at::Tensor found = pack->find(source);
  if (found.defined()) return found;
  living_packs();
  return pack->make(source);
}

void clear_packs() {
  {
    std::lock_guard<std::mutex> lock(owners().mutex);
    for (auto& [_, owner] : owners().all)
      owner.packs.clear();
  }
  free_panel_memory();
}

int64_t packs_bytes() {
  int64_t bytes = 0;
  for (const PackOf& pack : living_packs())
    bytes += pack->bytes();
  return bytes;
}

}  // namespace cora::cpu
