// Tensors of the CPU engines, as plain data: channels lie in blocks of 16, those of one voxel side by side and the voxels
// of a row one after the other.
#pragma once

#include <cstdint>

namespace mednext {

constexpr int64_t BLOCK = 16;

// Voxel (z, y, x) of channel block b begins at data + z * plane + y * row + b * block + x * step.
template <class T>
struct View {
  T* data;
  int64_t plane, row, block, step;

  T* at(int64_t z, int64_t y, int64_t x) const { return data + z * plane + y * row + x * step; }
};

template <class T>
View<const T> read_only(const View<T>& view) {
  return {view.data, view.plane, view.row, view.block, view.step};
}

// A volume whose blocks of channels lie one after the other: rows that follow one another in memory are what processors
// fetch ahead by themselves. Its blocks are some lines further apart than they are long, or the channels of a voxel would
// all want the same place in the cache.
template <class T>
struct Blocks {
  static constexpr int64_t FURTHER = 320 / sizeof(T);

  // Numbers of a volume of so many voxels and channels, in whole blocks.
  static int64_t count(int64_t voxels, int64_t channels) { return channels / BLOCK * (voxels * BLOCK + FURTHER); }
  static View<T> view(T* data, int64_t d, int64_t h, int64_t w) {
    return {data, h * w * BLOCK, w * BLOCK, d * h * w * BLOCK + FURTHER, BLOCK};
  }
};

// Of the depthwise convolution of a block: as it stands, with stride 2, or transposed with stride 2.
enum class Form : int32_t { same = 0, down = 1, up = 2 };

// Voxels that go through a feed-forward or a 1x1x1 convolution together.
constexpr int64_t TILE = 48;

}  // namespace mednext
