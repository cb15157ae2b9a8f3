// A network of blocks, and the memory that it runs in.
#pragma once

#include <memory>
#include <vector>

#include "block.h"
#include "pool.h"

namespace mednext {

struct Size {
  int64_t d, h, w;
  bool operator==(const Size& other) const { return d == other.d && h == other.h && w == other.w; }
};

// The residual stream at one resolution, and its copy in INT8 with a margin of zeros.
class Level {
 public:
  Level(Size size, int64_t channels, int64_t margin, bool deep);

  Size size;
  int64_t channels;

  View<uint16_t> stream() const;
  View<uint8_t> copy() const;

 private:
  int64_t margin_, margin_d_, row_;
  Lines<uint16_t> stream_;
  Lines<uint8_t> copy_;
};

}  // namespace mednext

struct mednext_cpu_net {
 public:
  mednext_cpu_net(const mednext::Int8Kernels& kernels, const mednext_cpu_dense& stem, const mednext_cpu_dense& head);

  ~mednext_cpu_net() { drop_foreign_pool(); }
  mednext_cpu_net(const mednext_cpu_net&) = delete;
  mednext_cpu_net& operator=(const mednext_cpu_net&) = delete;

  // Whether a block can follow those that are there.
  bool fits(const mednext_cpu_block& block) const;
  void add(const mednext_cpu_block& block);
  // Whether the network takes images of a size.
  bool takes(mednext::Size size) const;
  void run(mednext::Size size, const float* x, float* y, int threads);

 private:
  void prepare(mednext::Size size, int threads);
  void drop_foreign_pool() {
    if (pool_ && pool_->foreign()) static_cast<void>(pool_.release());
  }
  void run_block(std::size_t i);
  void convolve(const mednext::Block& block, const mednext::Level& from, mednext::Size size);
  void add_shortcut(const mednext::Block& block, const mednext::Level& from, const mednext::Level& to);
  void round_front(const mednext::Level& level, bool deep, float levels);
  template <class Call>
  void over_tiles(int64_t voxels, const Call& call);
  mednext::Copy8 copy_for(std::size_t next, const mednext::Level& level) const;

  const mednext::Int8Kernels& kernels_;
  int64_t in_channels_, classes_, channels_;  // channels_ of the stem, padded
  std::vector<int64_t> widths_;               // of the levels, as given; the last is the present one
  std::size_t level_ = 0, deepest_ = 0;
  mednext::Lines<float> stem_weight_, stem_bias_, head_weight_, head_bias_;
  std::vector<mednext::Block> blocks_;
  int64_t margin_ = 1, scratch_bytes_ = 0;

  // Of the size of the last run.
  mednext::Size size_{0, 0, 0};
  std::vector<mednext::Level> levels_;
  mednext::Lines<int16_t> y_;
  mednext::Lines<double> sums_;
  std::vector<double> totals_;
  mednext::Lines<float> norm_;
  std::unique_ptr<mednext::Pool> pool_;
  std::vector<mednext::Lines<uint8_t>> scratch_;
  std::size_t at_ = 0;  // level
};
