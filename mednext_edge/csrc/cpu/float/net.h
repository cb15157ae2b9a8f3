// A network of float blocks, and the memory that it runs in.
#pragma once

#include "block.h"

namespace mednext {

// The residual stream at one resolution, with a margin of zeros.
template <class T>
class FloatLevel {
 public:
  FloatLevel(Size size, int64_t channels, int64_t margin, bool deep);

  Size size;

  View<T> stream() const;

 private:
  int64_t margin_, margin_d_, row_;
  Lines<T> stream_;
};

// What any of them takes.
class AnyFloatNet : public mednext_cpu_net {
 public:
  virtual void add(const mednext_cpu_float_block& block) = 0;

 protected:
  using mednext_cpu_net::mednext_cpu_net;
};

template <class T>
class FloatNet : public AnyFloatNet {
 public:
  FloatNet(const FloatKernels<T>& kernels, const mednext_cpu_dense& stem, const mednext_cpu_dense& head);

  void add(const mednext_cpu_float_block& block) override;
  void run(Size size, const float* x, float* y, int threads) override;

 private:
  void prepare(Size size, int threads);
  void run_block(const FloatBlock<T>& block);
  void convolve(const FloatBlock<T>& block, const FloatLevel<T>& from, Size size);
  void make_norm(const FloatBlock<T>& block, const Parts& parts, Size size);
  void add_shortcut(const FloatBlock<T>& block, const FloatLevel<T>& from, const FloatLevel<T>& to);
  View<T> result(Size size) const;

  const FloatKernels<T>& kernels_;
  Ends ends_;
  std::vector<FloatBlock<T>> blocks_;
  int64_t margin_ = 1;

  // Of the size of the last run.
  Size size_{0, 0, 0};
  std::vector<FloatLevel<T>> levels_;
  Lines<T> y_;
  Lines<double> moments_;
  Lines<float> scale_, shift_;
  std::size_t at_ = 0;  // level
};

extern template class FloatNet<float>;
extern template class FloatNet<Bf16>;

}  // namespace mednext
