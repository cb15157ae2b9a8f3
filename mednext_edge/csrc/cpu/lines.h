// Memory that begins with a cache line: vectors that lie across two take twice the time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

namespace mednext {

template <class T>
class Lines {
 public:
  Lines() = default;
  explicit Lines(int64_t size)
      : size_(size), memory_(new unsigned char[static_cast<std::size_t>(size) * sizeof(T) + LINE]) {}

  T* data() const {
    const auto at = reinterpret_cast<uintptr_t>(memory_.get());
    return reinterpret_cast<T*>((at + LINE - 1) / LINE * LINE);
  }
  int64_t size() const { return size_; }
  void fill(int byte) { std::memset(data(), byte, static_cast<std::size_t>(size_) * sizeof(T)); }

 private:
  static constexpr std::size_t LINE = 64;
  int64_t size_ = 0;
  std::unique_ptr<unsigned char[]> memory_;
};

}  // namespace mednext
