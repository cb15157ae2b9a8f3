// A network of blocks on the CPU, of whichever arithmetic: how its levels follow one another, and its threads.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "../include/mednext_cpu_net.h"
#include "lines.h"
#include "pool.h"
#include "view.h"

namespace mednext {

struct Size {
  int64_t d, h, w;
  bool operator==(const Size& other) const { return d == other.d && h == other.h && w == other.w; }
};

inline int64_t voxels(Size size) { return size.d * size.h * size.w; }
inline int64_t whole_blocks(int64_t channels) { return (channels + BLOCK - 1) / BLOCK * BLOCK; }

// `values` and zeros up to `size`.
Lines<float> padded(const float* values, int64_t count, int64_t size);

// Stem and head, as the kernels read them.
struct Ends {
  int64_t c_in, width, classes;  // width of the stream, in whole blocks
  Lines<float> stem_weight;      // [c_in, width]
  Lines<float> stem_bias;        // [width]
  Lines<float> head_weight;      // [classes in blocks, width, BLOCK]
  Lines<float> head_bias;        // [classes in blocks]

  Ends(const mednext_cpu_dense& stem, const mednext_cpu_dense& head);
};

// What the depthwise convolution of a block makes of a size.
Size result_size(Form form, bool deep, Size size);

// The voxels of a resampling block's shortcut: where both of its convolutions have their first one, and every second
// from there, in the larger of the two sizes.
template <class T>
View<T> every_second(View<T> view, int64_t z, int64_t y, int64_t x, bool deep) {
  view.data = view.at(z, y, x);
  view.step *= 2;
  view.row *= 2;
  if (deep) view.plane *= 2;
  return view;
}

// How a plane of a depthwise convolution's result falls into parts, of which one thread takes several planes.
struct Parts {
  int64_t rows, parts, blocks;

  Parts(Size size, bool deep, int64_t channels);
  int64_t count(Size size) const { return size.d * parts * blocks; }
};

// What the largest of the blocks need: numbers of a depthwise convolution's result, parts of one, channels.
struct Largest {
  int64_t numbers = 0, parts = 0, channels = 0;
};

// Of blocks whose levels have these sizes.
template <class Block>
Largest largest_of(const std::vector<Block>& blocks, const std::vector<Size>& sizes, bool deep) {
  Largest found;
  std::size_t level = 0;
  for (const Block& block : blocks) {
    const Size result = result_size(block.form, deep, sizes[level]);
    found.numbers = std::max(found.numbers, voxels(result) * block.c_in);
    found.parts = std::max(found.parts, Parts(result, deep, block.c_in).count(result));
    found.channels = std::max(found.channels, block.c_in);
    if (block.form == Form::down) ++level;
    if (block.form == Form::up) --level;
  }
  return found;
}

}  // namespace mednext

struct mednext_cpu_net {
 public:
  virtual ~mednext_cpu_net() { drop_foreign_pool(); }
  mednext_cpu_net(const mednext_cpu_net&) = delete;
  mednext_cpu_net& operator=(const mednext_cpu_net&) = delete;

  // Whether a block can follow those that are there.
  bool fits(mednext::Form form, int64_t depth, int64_t c_in, int64_t c_out) const;
  // Whether the network takes images of a size.
  bool takes(mednext::Size size) const;
  virtual void run(mednext::Size size, const float* x, float* y, int threads) = 0;

 protected:
  explicit mednext_cpu_net(int64_t width) : widths_{width} {}

  // A block that fits follows.
  void follow(mednext::Form form, int64_t depth, int64_t c_out, int64_t scratch_bytes);
  void need_scratch(int64_t bytes);
  void take_threads(int threads);
  // The sizes of all levels.
  std::vector<mednext::Size> sizes(mednext::Size first) const;

  // Calls call(begin, end, scratch) for all voxels, in whole tiles.
  template <class Call>
  void over_tiles(int64_t count, const Call& call) {
    constexpr int64_t MOST = 64;  // that one thread takes at a time, if there are many
    const int64_t tiles = (count + mednext::TILE - 1) / mednext::TILE;
    const int64_t each = mednext::TILE * std::clamp(tiles / (8 * pool_->threads()), int64_t{1}, MOST);
    pool_->run((count + each - 1) / each, [&](int64_t i, int thread) {
      call(i * each, std::min(count, (i + 1) * each), scratch_[static_cast<std::size_t>(thread)].data());
    });
  }

  // Calls call(z, part, block) for all parts of a depthwise convolution's result.
  template <class Call>
  void over_parts(mednext::Size size, const mednext::Parts& parts, const Call& call) {
    constexpr int64_t MOST = 16;  // planes that one thread takes at a time: the first of them finds none in its cache
    const int64_t apart = parts.parts * parts.blocks;
    const int64_t planes = std::clamp(size.d * apart / (8 * pool_->threads()), int64_t{1}, MOST);
    pool_->run((size.d + planes - 1) / planes * apart, [&](int64_t i, int) {
      const int64_t first = i / apart * planes;
      for (int64_t z = first; z < std::min(size.d, first + planes); ++z)
        call(z, i / parts.blocks % parts.parts, i % parts.blocks);
    });
  }

  bool deep() const { return deep_; }
  std::size_t deepest() const { return deepest_; }
  int64_t width(std::size_t level) const { return widths_[level]; }  // as given

 private:
  void drop_foreign_pool() {
    if (pool_ && pool_->foreign()) static_cast<void>(pool_.release());
  }

  std::vector<int64_t> widths_;
  std::size_t level_ = 0, deepest_ = 0;
  bool empty_ = true, deep_ = false;
  int64_t scratch_bytes_ = 0;
  std::unique_ptr<mednext::Pool> pool_;
  std::vector<mednext::Lines<uint8_t>> scratch_;
};
