#include "net.h"

#include <algorithm>
#include <cmath>

using mednext::Block;
using mednext::BLOCK;
using mednext::Form;
using mednext::Level;
using mednext::Size;
using mednext::View;

namespace {

// Beyond a row: what the last window of a row reaches.
constexpr int64_t BEYOND = 5;
// Of a plane, and planes: what one thread convolves at a time. The rows of a kernel's planes stay in the second cache.
constexpr int64_t ROWS_3D = 64, ROWS_2D = 32, PLANES = 8;
// Tiles that one thread takes at a time, if there are many.
constexpr int64_t TILES = 16;

int64_t voxels(Size size) { return size.d * size.h * size.w; }

bool is_deep(const Block& block) { return block.depth > 1; }

// What a depthwise convolution of `size` makes.
Size result_size(const Block& block, Size size) {
  const int64_t deep = is_deep(block) ? 1 : 0;
  if (block.form == Form::down) return {deep ? size.d / 2 : size.d, size.h / 2, size.w / 2};
  if (block.form == Form::up) return {deep ? 2 * size.d - 1 : size.d, 2 * size.h - 1, 2 * size.w - 1};
  return size;
}

int64_t rows_of(const Block& block, Size size) { return std::min(size.h, is_deep(block) ? ROWS_3D : ROWS_2D); }

int64_t parts_of(const Block& block, Size size) {
  const int64_t rows = rows_of(block, size);
  return size.d * ((size.h + rows - 1) / rows);
}

}  // namespace

Level::Level(Size given, int64_t width, int64_t margin, bool deep)
    : size(given),
      channels(width),
      margin_(margin),
      margin_d_(deep ? margin : 0),
      row_(given.w + margin + std::max(margin, BEYOND)),
      stream_(voxels(given) * width),
      // Windows are read whole, and so beyond the last voxel.
      copy_((given.d + 2 * margin_d_) * (given.h + 2 * margin) * row_ * width + 64) {
  copy_.fill(mednext::ZERO);
}

View<uint16_t> Level::stream() const {
  const int64_t row = channels * size.w;
  return {stream_.data(), size.h * row, row, BLOCK * size.w, BLOCK};
}

View<uint8_t> Level::copy() const {
  const int64_t row = channels * row_, plane = (size.h + 2 * margin_) * row;
  return {copy_.data() + margin_d_ * plane + margin_ * row + margin_ * BLOCK, plane, row, BLOCK * row_, BLOCK};
}

mednext_cpu_net::mednext_cpu_net(const mednext::Int8Kernels& kernels, const mednext_cpu_dense& stem,
                                 const mednext_cpu_dense& head)
    : kernels_(kernels),
      in_channels_(stem.c_in),
      classes_(head.c_out),
      channels_(mednext::whole_blocks(stem.c_out)),
      widths_{stem.c_out},
      stem_weight_(stem.c_in * channels_),
      stem_bias_(mednext::padded(stem.bias, stem.c_out, channels_)),
      head_weight_(mednext::whole_blocks(head.c_out) * channels_),
      head_bias_(mednext::padded(head.bias, head.c_out, mednext::whole_blocks(head.c_out))) {
  stem_weight_.fill(0);
  for (int64_t c = 0; c < stem.c_out; ++c)
    for (int64_t k = 0; k < stem.c_in; ++k) stem_weight_.data()[k * channels_ + c] = stem.weight[c * stem.c_in + k];
  head_weight_.fill(0);
  for (int64_t k = 0; k < head.c_out; ++k)
    for (int64_t c = 0; c < head.c_in; ++c)
      head_weight_.data()[(k / BLOCK * channels_ + c) * BLOCK + k % BLOCK] = head.weight[k * head.c_in + c];
}

bool mednext_cpu_net::fits(const mednext_cpu_block& block) const {
  if (block.c_in != widths_[level_] || (!blocks_.empty() && is_deep(blocks_[0]) != (block.depth > 1))) return false;
  const auto form = static_cast<Form>(block.form);
  if (form == Form::same) return block.c_out == block.c_in;
  if (form == Form::down) return level_ == deepest_;
  return level_ > 0 && block.c_out == widths_[level_ - 1];
}

void mednext_cpu_net::add(const mednext_cpu_block& given) {
  blocks_.emplace_back(kernels_, given);
  const Block& block = blocks_.back();
  margin_ = std::max(margin_, block.kernel / 2);
  scratch_bytes_ = std::max(scratch_bytes_, kernels_.scratch_bytes(block.c_in, block.hidden));
  if (block.form == Form::down) {
    widths_.push_back(given.c_out);
    deepest_ = ++level_;
  }
  if (block.form == Form::up) --level_;
  size_ = {0, 0, 0};
  scratch_.clear();
}

bool mednext_cpu_net::takes(Size size) const {
  const int64_t unit = int64_t{1} << deepest_;
  const bool deep = !blocks_.empty() && is_deep(blocks_[0]);
  return level_ == 0 && size.d > 0 && size.h > 0 && size.w > 0 && (deep ? size.d % unit == 0 : size.d == 1) &&
         size.h % unit == 0 && size.w % unit == 0;
}

void mednext_cpu_net::prepare(Size size, int threads) {
  drop_foreign_pool();
  if (!pool_ || pool_->threads() != threads) pool_ = std::make_unique<mednext::Pool>(threads);
  while (static_cast<int>(scratch_.size()) < pool_->threads()) scratch_.emplace_back(scratch_bytes_);
  if (size == size_) return;
  size_ = {0, 0, 0};
  levels_.clear();
  y_ = {};
  const bool deep = !blocks_.empty() && is_deep(blocks_[0]);
  Size each = size;
  for (const int64_t width : widths_) {
    levels_.emplace_back(each, mednext::whole_blocks(width), margin_, deep);
    each = {deep ? each.d / 2 : each.d, each.h / 2, each.w / 2};
  }
  int64_t largest = 0, sums = 0, channels = 0;
  std::size_t at = 0;
  for (const Block& block : blocks_) {
    const Size result = result_size(block, levels_[at].size);
    largest = std::max(largest, voxels(result) * block.c_in);
    sums = std::max(sums, parts_of(block, result) * block.c_in * 2);
    channels = std::max(channels, block.c_in);
    if (block.form == Form::down) ++at;
    if (block.form == Form::up) --at;
  }
  y_ = mednext::Lines<int16_t>(largest);
  sums_ = mednext::Lines<double>(sums);
  totals_.resize(static_cast<std::size_t>(2 * channels));
  norm_ = mednext::Lines<float>(2 * channels);
  size_ = size;
}

template <class Call>
void mednext_cpu_net::over_tiles(int64_t count, const Call& call) {
  const int64_t tiles = (count + mednext::TILE - 1) / mednext::TILE;
  const int64_t each = mednext::TILE * std::clamp(tiles / (8 * pool_->threads()), int64_t{1}, TILES);
  pool_->run((count + each - 1) / each, [&](int64_t i, int thread) {
    call(i * each, std::min(count, (i + 1) * each), scratch_[static_cast<std::size_t>(thread)].data());
  });
}

mednext::Copy8 mednext_cpu_net::copy_for(std::size_t next, const Level& level) const {
  if (next >= blocks_.size()) return {{nullptr, 0, 0, 0, 0}, 0.0f};
  return {level.copy(), 1 / blocks_[next].in_step};
}

void mednext_cpu_net::run(Size size, const float* x, float* y, int threads) {
  prepare(size, std::max(threads, 1));
  const Level& first = levels_[0];
  const int64_t count = voxels(size);
  const mednext::Stem stem{in_channels_,        channels_, count, size.h, size.w, x, stem_weight_.data(),
                           stem_bias_.data(), first.stream(), copy_for(0, first)};
  over_tiles(count, [&](int64_t begin, int64_t end, uint8_t*) { kernels_.stem(stem, begin, end); });
  at_ = 0;
  for (std::size_t i = 0; i < blocks_.size(); ++i) run_block(i);
  const mednext::Head head{channels_,           classes_, count, size.h, size.w, read_only(first.stream()),
                           head_weight_.data(), head_bias_.data(), y};
  over_tiles(count, [&](int64_t begin, int64_t end, uint8_t*) { kernels_.head(head, begin, end); });
}

void mednext_cpu_net::run_block(std::size_t i) {
  const Block& block = blocks_[i];
  const Level& from = levels_[at_];
  if (block.form == Form::down) ++at_;
  if (block.form == Form::up) --at_;
  const Level& to = levels_[at_];
  const Size size = result_size(block, from.size);
  convolve(block, from, size);
  if (block.form != Form::same && block.residual) add_shortcut(block, from, to);
  const mednext::Copy8 copy = copy_for(i + 1, to);
  View<uint16_t> stream = to.stream();
  mednext::Copy8 inner = copy;
  if (block.form == Form::up) {  // a voxel of zeros is put in front of every axis
    const int64_t z = is_deep(block) ? 1 : 0;
    stream.data = stream.at(z, 1, 1);
    if (copy.to.data) {
      inner.to.data = copy.to.at(z, 1, 1);
      round_front(to, is_deep(block), copy.levels);
    }
  }
  const int64_t row = block.c_in * size.w;
  const bool add = block.form == Form::up || block.residual;
  const mednext::FeedForward8 job{block.c_in,
                                  block.hidden,
                                  block.c_out,
                                  size.h,
                                  size.w,
                                  {y_.data(), size.h * row, row, BLOCK * size.w, BLOCK},
                                  {norm_.data(), norm_.data() + block.c_in},
                                  block.expand.panels(),
                                  block.expand.scales(),
                                  block.table.data(),
                                  block.compress.panels(),
                                  block.compress.scales(),
                                  stream,
                                  add,
                                  inner};
  over_tiles(voxels(size), [&](int64_t begin, int64_t end, uint8_t* scratch) {
    kernels_.feed_forward(job, begin, end, scratch);
  });
}

// Leaves y in 16 bits, and in `norm_` what takes it to the INT8 of the normalised.
void mednext_cpu_net::convolve(const Block& block, const Level& from, Size size) {
  const int64_t row = block.c_in * size.w, rows = rows_of(block, size), blocks = block.c_in / BLOCK;
  const mednext::Depthwise8 job{block.form,
                                block.kernel,
                                block.depth,
                                size.d,
                                size.h,
                                size.w,
                                read_only(from.copy()),
                                block.depthwise.data(),
                                block.depthwise_offsets.data(),
                                block.depthwise_scale.data(),
                                block.c_in,
                                {y_.data(), size.h * row, row, BLOCK * size.w, BLOCK},
                                rows,
                                sums_.data()};
  const int64_t parts = (size.h + rows - 1) / rows;
  const int64_t planes = std::clamp(size.d * parts * blocks / (8 * pool_->threads()), int64_t{1}, PLANES);
  pool_->run((size.d + planes - 1) / planes * parts * blocks, [&](int64_t i, int) {
    const int64_t first = i / blocks / parts * planes;
    for (int64_t z = first; z < std::min(size.d, first + planes); ++z)
      kernels_.depthwise(job, z, i / blocks % parts, i % blocks);
  });
  std::fill_n(totals_.begin(), 2 * block.c_in, 0.0);
  for (int64_t i = 0; i < size.d * parts * blocks; ++i)
    for (int64_t k = 0; k < 2 * BLOCK; ++k)
      totals_[static_cast<std::size_t>(i % blocks * 2 * BLOCK + k)] += sums_.data()[i * 2 * BLOCK + k];
  const auto count = static_cast<double>(voxels(size));
  for (int64_t c = 0; c < block.c_in; ++c) {
    const double* const total = totals_.data() + c / BLOCK * 2 * BLOCK + c % BLOCK;
    const double mean = total[0] / count, unit = block.unit.data()[c];
    const double variance = std::max(total[BLOCK] / count - mean * mean, 0.0);
    const double scale = 1 / (block.norm_step * std::sqrt(variance + block.eps / (unit * unit)));
    norm_.data()[c] = static_cast<float>(scale);
    norm_.data()[block.c_in + c] = static_cast<float>(-mean * scale);
  }
}

void mednext_cpu_net::add_shortcut(const Block& block, const Level& from, const Level& to) {
  const bool up = block.form == Form::up, deep = is_deep(block);
  View<uint8_t> x = from.copy();
  View<uint16_t> stream = to.stream();
  const auto spread = [&](auto& view) {
    view.step *= 2;
    view.row *= 2;
    if (deep) view.plane *= 2;
  };
  if (up) {  // its results lie where both convolutions have their first voxel
    stream.data = stream.at(deep ? 1 : 0, 1, 1);
    spread(stream);
  } else {
    spread(x);
  }
  const Size size = up ? from.size : to.size;
  const mednext::Pointwise8 job{block.c_in,
                                block.c_out,
                                size.h,
                                size.w,
                                read_only(x),
                                block.shortcut.panels(),
                                block.shortcut.scales(),
                                stream,
                                up};
  over_tiles(voxels(size), [&](int64_t begin, int64_t end, uint8_t* scratch) {
    kernels_.pointwise(job, begin, end, scratch);
  });
}

// The copy of those voxels that an up block leaves as they are: the first plane, row and column.
void mednext_cpu_net::round_front(const Level& level, bool deep, float levels) {
  const View<uint16_t> stream = level.stream();
  const View<uint8_t> copy = level.copy();
  const auto round = [&](int64_t z, int64_t y, int64_t x, Size size) {
    View<uint16_t> from = stream;
    View<uint8_t> to = copy;
    from.data = stream.at(z, y, x);
    to.data = copy.at(z, y, x);
    const mednext::Rounding job{level.channels, size.h, size.w, read_only(from), {to, levels}};
    over_tiles(voxels(size), [&](int64_t begin, int64_t end, uint8_t*) { kernels_.round_stream(job, begin, end); });
  };
  const Size all = level.size;
  const int64_t z = deep ? 1 : 0;
  if (deep) round(0, 0, 0, {1, all.h, all.w});
  round(z, 0, 0, {all.d - z, 1, all.w});
  round(z, 1, 0, {all.d - z, all.h - 1, 1});
}
