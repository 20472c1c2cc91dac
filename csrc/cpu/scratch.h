// The working memory of a thread. It grows on demand, every later call uses it again, and its pieces are 64-byte
// aligned.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace cora::cpu {

class Scratch {
 public:
  // The memory of this thread, at least `bytes` of it, empty. Pieces taken before are void.
  static Scratch& of_thread(int64_t bytes) {
    thread_local Scratch scratch;
    if (bytes > scratch.size_) {
      scratch.memory_.reset();
      scratch.memory_.reset(static_cast<char*>(::operator new(bytes, std::align_val_t{kAlign})));
      scratch.size_ = bytes;
    }
    scratch.used_ = 0;
    return scratch;
  }

  static int64_t padded(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

  char* take(int64_t bytes) {
    char* piece = memory_.get() + used_;
    used_ += padded(bytes);
    return piece;
  }

 private:
  static constexpr int64_t kAlign = 64;
  struct Free {
    void operator()(char* p) const { ::operator delete(p, std::align_val_t{kAlign}); }
  };
  std::unique_ptr<char, Free> memory_;
  int64_t size_ = 0;
  int64_t used_ = 0;
};

}  // namespace cora::cpu
