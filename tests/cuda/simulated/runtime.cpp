// Takes the place of the CUDA runtime: the launches of the compiled launchers go to a callback.
#include "device.h"

#include <cstdint>
#include <map>
#include <string>

namespace {

struct Configuration {
  dim3 grid, block;
  size_t shared;
};

using Callback = void (*)(const char* kernel, const unsigned* grid, unsigned block, size_t shared, void* arguments);

std::map<const void*, std::string>& kernels() {
  static std::map<const void*, std::string> kernels;
  return kernels;
}

std::map<uint64_t, int64_t> tensors;
int multiprocessors = 108;
Configuration configuration;
Callback callback;

}  // namespace

namespace cora::gpu {
void note(const void* first, int64_t bytes) { tensors[uint64_t(first)] = bytes; }
int Device::multiprocessors() const { return ::multiprocessors; }
}  // namespace cora::gpu

extern "C" {

void set_callback(Callback chosen) { callback = chosen; }
void set_multiprocessors(int count) { multiprocessors = count; }

// The bytes of the tensor at this address, or 0.
int64_t bytes_at(uint64_t address) {
  const auto found = tensors.find(address);
  return found == tensors.end() ? 0 : found->second;
}

void** __cudaRegisterFatBinary(void*) { return nullptr; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  kernels()[host] = name;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(host));
  return cudaSuccess;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, CUstream_st*) {
  configuration = {grid, block, shared};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void*) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                               cudaStream_t) {
  const unsigned sizes[] = {grid.x, grid.y, grid.z};
  callback(kernels()[kernel].c_str(), sizes, block.x, shared, arguments[0]);
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
}
