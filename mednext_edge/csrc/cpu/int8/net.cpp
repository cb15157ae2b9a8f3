#include "net.h"

#include <algorithm>
#include <cmath>

namespace mednext {
namespace {

// Beyond a row: what the last window of a row reaches.
constexpr int64_t BEYOND = 5;

// Bytes of a depthwise convolution's result that caches may keep until it is read. A larger one goes past them: a line
// that is stored into is read first otherwise.
constexpr int64_t KEPT = int64_t{1} << 25;

}  // namespace

Level8::Level8(Size given, int64_t width, int64_t margin, bool deep)
    : size(given),
      channels(width),
      margin_(margin),
      margin_d_(deep ? margin : 0),
      row_(given.w + margin + std::max(margin, BEYOND)),
      stream_(Blocks<uint16_t>::count(voxels(given), width)),
      // Windows are read whole, and so beyond the last voxel.
      copy_(Blocks<uint8_t>::count((given.d + 2 * margin_d_) * (given.h + 2 * margin) * row_, width) + 64) {
  copy_.fill(ZERO);
}

View<uint16_t> Level8::stream() const { return Blocks<uint16_t>::view(stream_.data(), size.d, size.h, size.w); }

View<uint8_t> Level8::copy() const {
  View<uint8_t> view = Blocks<uint8_t>::view(copy_.data(), size.d + 2 * margin_d_, size.h + 2 * margin_, row_);
  view.data = view.at(margin_d_, margin_, margin_);
  return view;
}

Net8::Net8(const Int8Kernels& kernels, const mednext_cpu_dense& stem, const mednext_cpu_dense& head)
    : mednext_cpu_net(stem.c_out), kernels_(kernels), ends_(stem, head) {
  need_scratch(ends_.width * BLOCK * static_cast<int64_t>(sizeof(float)));  // the head's
}

void Net8::add(const mednext_cpu_block& given) {
  blocks_.emplace_back(kernels_, given);
  const Block8& block = blocks_.back();
  margin_ = std::max(margin_, block.kernel / 2);
  follow(block.form, block.depth, given.c_out, kernels_.scratch_bytes(block.c_in, block.hidden));
  size_ = {0, 0, 0};
}

void Net8::prepare(Size size, int threads) {
  take_threads(threads);
  if (size == size_) return;
  size_ = {0, 0, 0};
  levels_.clear();
  y_ = {};
  const std::vector<Size> all = sizes(size);
  for (const Size each : all) levels_.emplace_back(each, whole_blocks(width(levels_.size())), margin_, deep());
  const Largest largest = largest_of(blocks_, all, deep());
  y_ = Lines<int16_t>(largest.numbers + largest.channels / BLOCK * Blocks<int16_t>::FURTHER);
  sums_ = Lines<double>(largest.parts * 2 * BLOCK);
  totals_.resize(static_cast<std::size_t>(2 * largest.channels));
  norm_ = Norm(largest.channels);
  size_ = size;
}

Copy8 Net8::copy_for(std::size_t next, const Level8& level) const {
  if (next >= blocks_.size()) return {{nullptr, 0, 0, 0, 0}, 0.0f};
  return {level.copy(), 1 / blocks_[next].in_step};
}

void Net8::run(Size size, const float* x, float* y, int threads) {
  prepare(size, std::max(threads, 1));
  const Level8& first = levels_[0];
  const int64_t count = voxels(size);
  const Stem stem{ends_.c_in, ends_.width, count, size.h, size.w, x, ends_.stem_weight.data(), ends_.stem_bias.data(),
                  first.stream(), copy_for(0, first)};
  over_tiles(count, [&](int64_t begin, int64_t end, uint8_t*) { kernels_.stem(stem, begin, end); });
  at_ = 0;
  for (std::size_t i = 0; i < blocks_.size(); ++i) run_block(i);
  const Head head{ends_.width, ends_.classes, count, size.h, size.w, read_only(first.stream()),
                  ends_.head_weight.data(), ends_.head_bias.data(), y};
  over_tiles(count, [&](int64_t begin, int64_t end, uint8_t* scratch) { kernels_.head(head, begin, end, scratch); });
}

void Net8::run_block(std::size_t i) {
  const Block8& block = blocks_[i];
  const Level8& from = levels_[at_];
  if (block.form == Form::down) ++at_;
  if (block.form == Form::up) --at_;
  const Level8& to = levels_[at_];
  const Size size = result_size(block.form, deep(), from.size);
  convolve(block, from, size);
  if (block.form != Form::same && block.residual) add_shortcut(block, from, to);
  const Copy8 copy = copy_for(i + 1, to);
  View<uint16_t> stream = to.stream();
  Copy8 inner = copy;
  if (block.form == Form::up) {  // a voxel of zeros is put in front of every axis
    const int64_t z = deep() ? 1 : 0;
    stream.data = stream.at(z, 1, 1);
    if (copy.to.data) {
      inner.to.data = copy.to.at(z, 1, 1);
      round_front(to, copy.levels);
    }
  }
  const bool add = block.form == Form::up || block.residual;
  const FeedForward8 job{block.c_in,
                         block.hidden,
                         size.h,
                         size.w,
                         read_only(Blocks<int16_t>::view(y_.data(), size.d, size.h, size.w)),
                         norm_.numbers(),
                         block.expand.panels(),
                         block.expand.scales(),
                         block.table.data(),
                         {block.c_out, block.compress.panels(), block.compress.scales(), stream, add, inner}};
  over_tiles(voxels(size), [&](int64_t begin, int64_t end, uint8_t* scratch) {
    kernels_.feed_forward(job, begin, end, scratch);
  });
}

// Leaves y in 16 bits, and in `norm_` what takes it to the levels of the normalised.
void Net8::convolve(const Block8& block, const Level8& from, Size size) {
  const Parts parts(size, deep(), block.c_in);
  const Depthwise8 job{block.form,
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
                       Blocks<int16_t>::view(y_.data(), size.d, size.h, size.w),
                       voxels(size) * block.c_in * static_cast<int64_t>(sizeof(int16_t)) > KEPT,
                       parts.rows,
                       sums_.data()};
  over_parts(size, parts, [&](int64_t z, int64_t part, int64_t b) { kernels_.depthwise(job, z, part, b); });
  std::fill_n(totals_.begin(), 2 * block.c_in, 0.0);
  for (int64_t i = 0; i < parts.count(size); ++i)
    for (int64_t k = 0; k < 2 * BLOCK; ++k)
      totals_[static_cast<std::size_t>(i % parts.blocks * 2 * BLOCK + k)] += sums_.data()[i * 2 * BLOCK + k];
  const auto count = static_cast<double>(voxels(size));
  for (int64_t c = 0; c < block.c_in; ++c) {
    const double* const total = totals_.data() + c / BLOCK * 2 * BLOCK + c % BLOCK;
    const double mean = total[0] / count, unit = block.unit.data()[c];
    const double variance = std::max(total[BLOCK] / count - mean * mean, 0.0);
    // Of a channel that is the same everywhere, every level is 0.
    const double deviation = variance > 0 ? std::sqrt(variance + block.eps / (unit * unit)) : HUGE_VAL;
    norm_.set(c, 1 / (block.norm_step * deviation), mean);
  }
}

void Net8::add_shortcut(const Block8& block, const Level8& from, const Level8& to) {
  const bool up = block.form == Form::up;
  View<uint8_t> x = from.copy();
  View<uint16_t> stream = to.stream();
  if (up) {
    stream = every_second(stream, deep() ? 1 : 0, 1, 1, deep());
  } else {
    x = every_second(x, 0, 0, 0, deep());
  }
  const Size size = up ? from.size : to.size;
  const Pointwise8 job{block.c_in, size.h, size.w, read_only(x),
                       {block.c_out, block.shortcut.panels(), block.shortcut.scales(), stream, up, {}}};
  over_tiles(voxels(size), [&](int64_t begin, int64_t end, uint8_t* scratch) {
    kernels_.pointwise(job, begin, end, scratch);
  });
}

// The copy of those voxels that an up block leaves as they are: the first plane, row and column.
void Net8::round_front(const Level8& level, float levels) {
  const View<uint16_t> stream = level.stream();
  const View<uint8_t> copy = level.copy();
  const auto round = [&](int64_t z, int64_t y, int64_t x, Size size) {
    View<uint16_t> from = stream;
    View<uint8_t> to = copy;
    from.data = stream.at(z, y, x);
    to.data = copy.at(z, y, x);
    const Rounding job{level.channels, size.h, size.w, read_only(from), {to, levels}};
    over_tiles(voxels(size), [&](int64_t begin, int64_t end, uint8_t*) { kernels_.round_stream(job, begin, end); });
  };
  const Size all = level.size;
  const int64_t z = deep() ? 1 : 0;
  if (deep()) round(0, 0, 0, {1, all.h, all.w});
  round(z, 0, 0, {all.d - z, 1, all.w});
  round(z, 1, 0, {all.d - z, all.h - 1, 1});
}

}  // namespace mednext
