// A (y, x) window of one plane of a channels-last tensor in shared memory.
//
// A voxel holds 64 bytes of channels: one 4-byte word for each of 16 lanes, so a half-warp reads a voxel at once.
#pragma once

#include "mednext/storage.h"

namespace mednext {

constexpr int LANES = 16;
constexpr int VOXEL_BYTES = 4 * LANES;

struct Extent {
  int d, h, w;
};

// The two half-warps of a warp read voxels that lie STEP rows apart; the pitch puts them 64 bytes apart modulo
// 128, in different banks.
template <int HEIGHT_, int WIDTH_, int STEP>
struct Tile {
  static constexpr int HEIGHT = HEIGHT_, WIDTH = WIDTH_, PIECES = VOXEL_BYTES / 16;
  static constexpr int PITCH = STEP == 1 ? (WIDTH | 1) * VOXEL_BYTES : WIDTH * VOXEL_BYTES + VOXEL_BYTES / 2;
  static constexpr int BYTES = HEIGHT * PITCH;
  static_assert(STEP == 1 || STEP == 2, "the pitch is worked out for these");

  // Byte of a piece of a voxel; see PlaneLoader.
  MEDNEXT_DEVICE static int place(int voxel, int piece) {
    return voxel / WIDTH * PITCH + voxel % WIDTH * VOXEL_BYTES + piece * 16;
  }
};

// Copies a window, plane by plane. Voxels and channels outside the tensor become zeros. A tile says where the PIECES of
// 16 bytes of every voxel lie, which are numbered row by row.
template <class T, class Tile, int THREADS>
class PlaneLoader {
  using Element = typename T::Element;
  static constexpr int PER_COPY = 16 / static_cast<int>(sizeof(Element));
  static constexpr int COPIES = Tile::HEIGHT * Tile::WIDTH * Tile::PIECES;
  static constexpr int TURNS = (COPIES + THREADS - 1) / THREADS;

 public:
  // `x` is the whole tensor, (y0, x0) the window's first voxel, c0 its first channel. `wide`: 16-byte copies are
  // aligned, so a copy never straddles the last channel.
  MEDNEXT_DEVICE PlaneLoader(const void* x, const Extent& size, int c, int n, int y0, int x0, int c0, bool wide,
                             int thread = thread_index())
      : depth_(size.d), channels_(c - c0), thread_(thread), wide_(wide) {
    plane_ = static_cast<int64_t>(size.h) * size.w * c;
    base_ = static_cast<const Element*>(x) + n * size.d * plane_ + c0;
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
      const int copy = turn * THREADS + thread_, voxel = copy / Tile::PIECES;
      const int yi = y0 + voxel / Tile::WIDTH, xi = x0 + voxel % Tile::WIDTH;
      const int channel = copy % Tile::PIECES * PER_COPY;
      const bool inside = yi >= 0 && yi < size.h && xi >= 0 && xi < size.w && channel < channels_;
      offset_[turn] = inside ? (yi * size.w + xi) * c + channel : 0;
      inside_ |= static_cast<unsigned>(inside) << turn;
    }
  }

  MEDNEXT_DEVICE bool has(int z) const { return z >= 0 && z < depth_; }

  // Starts the copies of plane z, or of zeros when the tensor has no such plane.
  MEDNEXT_DEVICE void start(char* tile, int z) const {
    const unsigned inside = has(z) ? inside_ : 0;
    const Element* plane = base_ + (has(z) ? z : 0) * plane_;
    if (wide_) {
#pragma unroll
      for (int turn = 0; turn < TURNS; ++turn) {
        if (beyond(turn)) break;
        copy_async(tile + place(turn), plane + offset_[turn], inside >> turn & 1);
      }
      return;
    }
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
      if (beyond(turn)) break;
      const int channel = (turn * THREADS + thread_) % Tile::PIECES * PER_COPY;
      const bool some = inside >> turn & 1;
      Element* to = reinterpret_cast<Element*>(tile + place(turn));
#pragma unroll 1
      for (int i = 0; i < PER_COPY; ++i) {
        to[i] = some && channel + i < channels_ ? plane[offset_[turn] + i] : Element(0);
      }
    }
  }

 private:
  MEDNEXT_DEVICE bool beyond(int turn) const { return COPIES % THREADS != 0 && turn * THREADS + thread_ >= COPIES; }

  MEDNEXT_DEVICE int place(int turn) const {
    const int copy = turn * THREADS + thread_;
    return Tile::place(copy / Tile::PIECES, copy % Tile::PIECES);
  }

  const Element* base_;
  int64_t plane_;
  int depth_, channels_, thread_;
  bool wide_;
  unsigned inside_ = 0;  // a bit for every turn
  int offset_[TURNS];    // elements from the plane's first
  static_assert(TURNS <= 32, "one bit for every turn");
};

// COUNT neighbouring voxels of a tile's row, this lane's word of each, as floats.
template <class T, int COUNT>
MEDNEXT_DEVICE void read_row(const char* row, float (&values)[COUNT][T::WIDTH]) {
#pragma unroll
  for (int x = 0; x < COUNT; ++x) {
    uint32_t word;
    memcpy(&word, row + x * VOXEL_BYTES, 4);
    T::unpack(word, values[x]);
  }
}

// Weights [taps][C] in memory as float [taps][16 lanes][WIDTH] in shared memory; zeros beyond the last channel.
template <class T, int TAPS, int THREADS>
MEDNEXT_DEVICE void read_weights(float* shared, const float* weight, int c, int c0, bool flip) {
  constexpr int CHANNELS = LANES * T::WIDTH;
  for (int i = thread_index(); i < TAPS * CHANNELS; i += THREADS) {
    const int tap = i / CHANNELS, channel = c0 + i % CHANNELS;
    shared[i] = channel < c ? weight[static_cast<int64_t>(flip ? TAPS - 1 - tap : tap) * c + channel] : 0.0f;
  }
}

}  // namespace mednext
