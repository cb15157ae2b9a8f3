// The weights of an INT8 feed-forward as one instruction set reads them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace mednext {

// Memory that begins with a cache line: vectors that lie across two take twice the time.
template <class T>
class Lines {
 public:
  explicit Lines(int64_t size) : memory_(static_cast<std::size_t>(size) + LINE / sizeof(T)) {}
  T* data() const {
    const auto at = reinterpret_cast<uintptr_t>(memory_.data());
    return reinterpret_cast<T*>((at + LINE - 1) / LINE * LINE);
  }

 private:
  static constexpr std::size_t LINE = 64;
  std::vector<T> memory_;
};

}  // namespace mednext

struct mednext_cpu_ffn_packed {
 public:
  mednext_cpu_ffn_packed(const mednext::CpuKernels& kernels, const mednext_cpu_ffn& layer);
  mednext_cpu_ffn_packed(const mednext_cpu_ffn_packed&) = delete;
  mednext_cpu_ffn_packed& operator=(const mednext_cpu_ffn_packed&) = delete;

  void run(int64_t voxels, const int8_t* x, const uint16_t* residual, uint16_t* y, int threads) const;

 private:
  mednext::FfnWeights weights() const;

  const mednext::CpuKernels& kernels_;
  mednext::FfnChannels channels_;
  mednext::FfnSizes sizes_;
  mednext::Lines<int8_t> expand_, compress_;
  mednext::Lines<int32_t> offsets_;
  mednext::Lines<float> scales_;
  mednext::Lines<uint8_t> table_;
};
