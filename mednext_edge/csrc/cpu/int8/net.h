// A network of INT8 blocks, and the memory that it runs in.
#pragma once

#include "../net.h"
#include "block.h"
#include "norm.h"

namespace mednext {

// The residual stream at one resolution, and its copy in INT8 with a margin of zeros.
class Level8 {
 public:
  Level8(Size size, int64_t channels, int64_t margin, bool deep);

  Size size;
  int64_t channels;

  View<uint16_t> stream() const;
  View<uint8_t> copy() const;

 private:
  int64_t margin_, margin_d_, row_;
  Lines<uint16_t> stream_;
  Lines<uint8_t> copy_;
};

class Net8 : public mednext_cpu_net {
 public:
  Net8(const Int8Kernels& kernels, const mednext_cpu_dense& stem, const mednext_cpu_dense& head);

  void add(const mednext_cpu_block& block);
  void run(Size size, const float* x, float* y, int threads) override;

 private:
  void prepare(Size size, int threads);
  void run_block(std::size_t i);
  void convolve(const Block8& block, const Level8& from, Size size);
  void add_shortcut(const Block8& block, const Level8& from, const Level8& to);
  void round_front(const Level8& level, float levels);
  Copy8 copy_for(std::size_t next, const Level8& level) const;

  const Int8Kernels& kernels_;
  Ends ends_;
  std::vector<Block8> blocks_;
  int64_t margin_ = 1;

  // Of the size of the last run.
  Size size_{0, 0, 0};
  std::vector<Level8> levels_;
  Lines<int16_t> y_;
  Lines<double> sums_;
  std::vector<double> totals_;
  Norm norm_;
  std::size_t at_ = 0;  // level
};

}  // namespace mednext
