#include "net.h"

namespace mednext {

// Of a plane: what one thread convolves at a time. The rows of a kernel's planes stay in the second cache.
constexpr int64_t ROWS_3D = 64, ROWS_2D = 32;

Lines<float> padded(const float* values, int64_t count, int64_t size) {
  Lines<float> result(size);
  result.fill(0);
  std::copy_n(values, count, result.data());
  return result;
}

Ends::Ends(const mednext_cpu_dense& stem, const mednext_cpu_dense& head)
    : c_in(stem.c_in),
      width(whole_blocks(stem.c_out)),
      classes(head.c_out),
      stem_weight(c_in * width),
      stem_bias(padded(stem.bias, stem.c_out, width)),
      head_weight(whole_blocks(classes) * width),
      head_bias(padded(head.bias, classes, whole_blocks(classes))) {
  stem_weight.fill(0);
  for (int64_t c = 0; c < stem.c_out; ++c)
    for (int64_t k = 0; k < c_in; ++k) stem_weight.data()[k * width + c] = stem.weight[c * c_in + k];
  head_weight.fill(0);
  for (int64_t k = 0; k < classes; ++k)
    for (int64_t c = 0; c < head.c_in; ++c)
      head_weight.data()[(k / BLOCK * width + c) * BLOCK + k % BLOCK] = head.weight[k * head.c_in + c];
}

Size result_size(Form form, bool deep, Size size) {
  if (form == Form::down) return {deep ? size.d / 2 : size.d, size.h / 2, size.w / 2};
  if (form == Form::up) return {deep ? 2 * size.d - 1 : size.d, 2 * size.h - 1, 2 * size.w - 1};
  return size;
}

Parts::Parts(Size size, bool deep, int64_t channels)
    : rows(std::min(size.h, deep ? ROWS_3D : ROWS_2D)), parts((size.h + rows - 1) / rows), blocks(channels / BLOCK) {}

}  // namespace mednext

using mednext::Form;
using mednext::Size;

bool mednext_cpu_net::fits(Form form, int64_t depth, int64_t c_in, int64_t c_out) const {
  if (c_in != widths_[level_] || (!empty_ && deep_ != (depth > 1))) return false;
  if (form == Form::same) return c_out == c_in;
  if (form == Form::down) return level_ == deepest_;
  return level_ > 0 && c_out == widths_[level_ - 1];
}

void mednext_cpu_net::follow(Form form, int64_t depth, int64_t c_out, int64_t scratch_bytes) {
  empty_ = false;
  deep_ = depth > 1;
  need_scratch(scratch_bytes);
  if (form == Form::down) {
    widths_.push_back(c_out);
    deepest_ = ++level_;
  }
  if (form == Form::up) --level_;
}

void mednext_cpu_net::need_scratch(int64_t bytes) {
  scratch_bytes_ = std::max(scratch_bytes_, bytes);
  scratch_.clear();
}

bool mednext_cpu_net::takes(Size size) const {
  const int64_t unit = int64_t{1} << deepest_;
  return level_ == 0 && size.d > 0 && size.h > 0 && size.w > 0 && (deep_ ? size.d % unit == 0 : size.d == 1) &&
         size.h % unit == 0 && size.w % unit == 0;
}

void mednext_cpu_net::take_threads(int threads) {
  drop_foreign_pool();
  if (!pool_ || pool_->threads() != threads) pool_ = std::make_unique<mednext::Pool>(threads);
  while (static_cast<int>(scratch_.size()) < pool_->threads()) scratch_.emplace_back(scratch_bytes_);
}

std::vector<Size> mednext_cpu_net::sizes(Size first) const {
  std::vector<Size> found;
  for (std::size_t level = 0; level <= deepest_; ++level) {
    found.push_back(first);
    first = {deep_ ? first.d / 2 : first.d, first.h / 2, first.w / 2};
  }
  return found;
}
