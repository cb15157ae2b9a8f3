#include "net.h"

#include <cmath>

namespace mednext {

template <class T>
FloatLevel<T>::FloatLevel(Size given, int64_t width, int64_t margin, bool deep)
    : size(given),
      margin_(margin),
      margin_d_(deep ? margin : 0),
      row_(given.w + 2 * margin),
      // Some results of a row are computed together, and read what would be beyond the last one.
      stream_(Blocks<T>::count((given.d + 2 * margin_d_) * (given.h + 2 * margin) * row_, width) + BLOCK * 2) {
  stream_.fill(0);
}

template <class T>
View<T> FloatLevel<T>::stream() const {
  View<T> view = Blocks<T>::view(stream_.data(), size.d + 2 * margin_d_, size.h + 2 * margin_, row_);
  view.data = view.at(margin_d_, margin_, margin_);
  return view;
}

template <class T>
FloatNet<T>::FloatNet(const FloatKernels<T>& kernels, const mednext_cpu_dense& stem, const mednext_cpu_dense& head)
    : AnyFloatNet(stem.c_out), kernels_(kernels), ends_(stem, head) {}

template <class T>
void FloatNet<T>::add(const mednext_cpu_float_block& given) {
  blocks_.emplace_back(kernels_, given);
  const FloatBlock<T>& block = blocks_.back();
  margin_ = std::max(margin_, block.kernel / 2);
  follow(block.form, block.depth, given.c_out, kernels_.scratch_bytes(block.c_in, block.hidden));
  size_ = {0, 0, 0};
}

template <class T>
void FloatNet<T>::prepare(Size size, int threads) {
  take_threads(threads);
  if (size == size_) return;
  size_ = {0, 0, 0};
  levels_.clear();
  y_ = {};
  const std::vector<Size> all = sizes(size);
  for (const Size each : all) levels_.emplace_back(each, whole_blocks(width(levels_.size())), margin_, deep());
  const Largest largest = largest_of(blocks_, all, deep());
  y_ = Lines<T>(largest.numbers + largest.channels / BLOCK * Blocks<T>::FURTHER);
  moments_ = Lines<double>(largest.parts * 3 * BLOCK);
  scale_ = Lines<float>(largest.channels);
  shift_ = Lines<float>(largest.channels);
  size_ = size;
}

template <class T>
void FloatNet<T>::run(Size size, const float* x, float* y, int threads) {
  prepare(size, std::max(threads, 1));
  const View<T> first = levels_[0].stream();
  const int64_t count = voxels(size);
  const FloatStem<T> stem{ends_.c_in, ends_.width, count, size.h, size.w, x, ends_.stem_weight.data(),
                          ends_.stem_bias.data(), first};
  over_tiles(count, [&](int64_t begin, int64_t end, uint8_t*) { kernels_.stem(stem, begin, end); });
  at_ = 0;
  for (const FloatBlock<T>& block : blocks_) run_block(block);
  const FloatHead<T> head{ends_.width, ends_.classes, count, size.h, size.w, read_only(first),
                          ends_.head_weight.data(), ends_.head_bias.data(), y};
  over_tiles(count, [&](int64_t begin, int64_t end, uint8_t*) { kernels_.head(head, begin, end); });
}

template <class T>
View<T> FloatNet<T>::result(Size size) const {
  return Blocks<T>::view(y_.data(), size.d, size.h, size.w);
}

template <class T>
void FloatNet<T>::run_block(const FloatBlock<T>& block) {
  const FloatLevel<T>& from = levels_[at_];
  if (block.form == Form::down) ++at_;
  if (block.form == Form::up) --at_;
  const FloatLevel<T>& to = levels_[at_];
  const Size size = result_size(block.form, deep(), from.size);
  convolve(block, from, size);
  if (block.form != Form::same && block.residual) add_shortcut(block, from, to);
  View<T> stream = to.stream();
  if (block.form == Form::up) stream.data = stream.at(deep() ? 1 : 0, 1, 1);  // zeros are put in front of every axis
  const FeedForward<T> job{block.c_in,
                           block.hidden,
                           block.c_out,
                           size.h,
                           size.w,
                           read_only(result(size)),
                           scale_.data(),
                           shift_.data(),
                           block.expand.panels(),
                           block.compress.panels(),
                           stream,
                           block.form == Form::up || block.residual};
  over_tiles(voxels(size), [&](int64_t begin, int64_t end, uint8_t* scratch) {
    kernels_.feed_forward(job, begin, end, scratch);
  });
}

// Leaves y, and what norms it.
template <class T>
void FloatNet<T>::convolve(const FloatBlock<T>& block, const FloatLevel<T>& from, Size size) {
  const Parts parts(size, deep(), block.c_in);
  const Depthwise<T> job{block.form,
                         block.kernel,
                         block.depth,
                         size.d,
                         size.h,
                         size.w,
                         read_only(from.stream()),
                         block.depthwise.data(),
                         block.c_in,
                         result(size),
                         parts.rows,
                         moments_.data()};
  over_parts(size, parts, [&](int64_t z, int64_t part, int64_t b) { kernels_.depthwise(job, z, part, b); });
  make_norm(block, parts, size);
}

// The moments of the parts together: those of each about its own mean, and of the means about the mean of all.
template <class T>
void FloatNet<T>::make_norm(const FloatBlock<T>& block, const Parts& parts, Size size) {
  const auto all = static_cast<double>(voxels(size));
  for (int64_t c = 0; c < block.c_in; ++c) {
    const auto over = [&](const auto& call) {
      for (int64_t i = 0; i < size.d * parts.parts; ++i) {
        const int64_t top = i % parts.parts * parts.rows;
        const auto count = static_cast<double>(std::min(parts.rows, size.h - top) * size.w);
        const double* const found = moments_.data() + (i * parts.blocks + c / BLOCK) * 3 * BLOCK + c % BLOCK;
        const double apart = found[BLOCK] / count;
        call(count, found[0] + apart, found[2 * BLOCK] - apart * found[BLOCK]);
      }
    };
    double sum = 0, squares = 0;
    over([&](double count, double mean, double) { sum += count * mean; });
    const double mean = sum / all;
    over([&](double count, double part, double within) { squares += within + count * (part - mean) * (part - mean); });
    // Channels that only fill a block up are constant, and have no norm where eps is 0.
    const double scale = c < block.channels ? 1 / std::sqrt(std::max(squares, 0.0) / all + block.eps) : 0;
    scale_.data()[c] = static_cast<float>(scale);
    shift_.data()[c] = static_cast<float>(-mean * scale);
  }
}

template <class T>
void FloatNet<T>::add_shortcut(const FloatBlock<T>& block, const FloatLevel<T>& from, const FloatLevel<T>& to) {
  const bool up = block.form == Form::up;
  View<T> x = from.stream(), stream = to.stream();
  if (up) {
    stream = every_second(stream, deep() ? 1 : 0, 1, 1, deep());
  } else {
    x = every_second(x, 0, 0, 0, deep());
  }
  const Size size = up ? from.size : to.size;
  const Pointwise<T> job{block.c_in, block.c_out, size.h, size.w, read_only(x), block.shortcut.panels(), stream, up};
  over_tiles(voxels(size), [&](int64_t begin, int64_t end, uint8_t* scratch) {
    kernels_.pointwise(job, begin, end, scratch);
  });
}

template class FloatNet<float>;
template class FloatNet<Bf16>;

}  // namespace mednext
