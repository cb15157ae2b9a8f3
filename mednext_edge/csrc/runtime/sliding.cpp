#include "sliding.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <numeric>

#include "error.h"
#include "parallel.h"
#include "window.h"

// Compiled for each width of vectors; which one runs is chosen when the library is loaded. All round alike, since
// multiplications and additions are not contracted. Not in builds for sanitizers, which begin after that choice.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__OPTIMIZE__) && defined(__GNUC__) && !defined(__clang__)
#define MEDNEXT_ANY_WIDTH __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define MEDNEXT_ANY_WIDTH
#endif

namespace mednext {
namespace {

// e^x for x <= 0 to about one unit in the last place, in a form that compilers turn into vector code: 2^n by the
// exponent's bits, the rest by the Taylor polynomial of degree 7 on |r| <= ln(2)/2.
inline float exponential(float x) {
  x = std::max(x, -87.0f);
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const float n = (x * 1.44269504f + kRounder) - kRounder;
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  const float p =
      1 + r * (1 + r * (0.5f + r * (1.66666667e-1f + r * (4.16666667e-2f + r * (8.33333333e-3f +
                                                          r * (1.38888889e-3f + r * 1.98412698e-4f))))));
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

// Softmax over the classes of one row, in place: [classes][stride], the first `width` of each.
MEDNEXT_ANY_WIDTH void softmax(float* row, int64_t classes, int64_t width) {
  constexpr int64_t kBlock = 64;
  for (int64_t x = 0; x < width; x += kBlock) {
    const int64_t n = std::min(kBlock, width - x);
    float high[kBlock], sum[kBlock] = {};
    std::copy_n(row + x, n, high);
    for (int64_t c = 1; c < classes; ++c)
      for (int64_t i = 0; i < n; ++i) high[i] = std::max(high[i], row[c * width + x + i]);
    for (int64_t c = 0; c < classes; ++c)
      for (int64_t i = 0; i < n; ++i) {
        float& value = row[c * width + x + i];
        value = exponential(value - high[i]);
        sum[i] += value;
      }
    for (int64_t c = 0; c < classes; ++c)
      for (int64_t i = 0; i < n; ++i) row[c * width + x + i] /= sum[i];
  }
}

}  // namespace

Sliding::Sliding(const Manifest& manifest, const Shape& shape, double step, bool mirror, int threads)
    : manifest_(manifest), shape_(shape), threads_(threads), scores_(manifest.score_channels(), shape),
      total_(static_cast<size_t>(voxels(shape))) {
  const Shape& patch = manifest.patch;
  std::array<std::vector<int64_t>, 3> along;
  for (int k = 0; k < 3; ++k) {
    const int64_t missing = std::max<int64_t>(0, patch[k] - shape[k]);
    along[k] = window_starts(std::max(shape[k], patch[k]), patch[k], step > 0 ? step : manifest.step);
    for (int64_t& start : along[k]) start -= missing / 2;
  }
  const bool single = along[1].size() * along[2].size() * (manifest.spatial_dims == 3 ? along[0].size() : 1) == 1;
  if (manifest.spatial_dims == 2) {  // every slice by itself
    along[0].resize(static_cast<size_t>(shape[0]));
    for (int64_t z = 0; z < shape[0]; ++z) along[0][z] = z;
  }
  for (const int64_t z : along[0])
    for (const int64_t y : along[1])
      for (const int64_t x : along[2]) starts_.push_back({z, y, x});
  weights_ = single ? std::vector<float>(static_cast<size_t>(voxels(patch)), 1.0f) : gaussian_map(patch);
  const size_t axes = mirror ? manifest.mirror_axes.size() : 0;
  for (size_t combination = 0; combination < size_t{1} << axes; ++combination) {
    Flip flip{};
    for (size_t i = 0; i < axes; ++i) flip[manifest.mirror_axes[i]] = combination >> i & 1;
    flips_.push_back(flip);
  }
}

Box Sliding::reads(int64_t window) const {
  Box box;
  for (int k = 0; k < 3; ++k) {
    box.start[k] = std::max<int64_t>(0, starts_[window][k]);
    box.stop[k] = std::min(shape_[k], starts_[window][k] + manifest_.patch[k]);
  }
  return box;
}

void Sliding::run(int64_t window, const Volume& image, const Shape& origin, Engine& engine) {
  for (const Flip& flip : flips_) {
    gather(starts_[window], flip, image, origin, engine.input());
    const float* logits = engine.run();
    if (manifest_.classifies) {  // a window's answer stands for all its voxels
      const int64_t patch = voxels(manifest_.patch);
      spread_.resize(static_cast<size_t>(manifest_.outputs * patch));
      for (int64_t c = 0; c < manifest_.outputs; ++c) std::fill_n(spread_.data() + c * patch, patch, logits[c]);
      logits = spread_.data();
    }
    blend(starts_[window], flip, logits, engine.provider());
  }
  const Box box = reads(window);
  const auto [ny, nx] = std::pair(manifest_.patch[1], manifest_.patch[2]);
  const auto times = static_cast<float>(flips_.size());
  for (int64_t z = box.start[0]; z < box.stop[0]; ++z)
    for (int64_t y = box.start[1]; y < box.stop[1]; ++y) {
      const Shape& start = starts_[window];
      float* total = total_.data() + (z * shape_[1] + y) * shape_[2];
      const float* weight = weights_.data() + ((z - start[0]) * ny + (y - start[1])) * nx - start[2];
      for (int64_t x = box.start[2]; x < box.stop[2]; ++x) total[x] += times * weight[x];
    }
}

// Starting threads costs more than they save on small patches.
int Sliding::threads_for_patch() const { return voxels(manifest_.patch) > 100000 ? threads_ : 1; }

void Sliding::gather(const Shape& start, const Flip& flip, const Volume& image, const Shape& origin,
                     float* patch) const {
  const auto [nz, ny, nx] = manifest_.patch;
  parallel_for(image.channels * nz, threads_for_patch(), [&, nz = nz, ny = ny, nx = nx](int64_t plane) {
    const int64_t z = plane % nz, at_z = start[0] + (flip[0] ? nz - 1 - z : z);
    const float* channel = image.channel(plane / nz);
    for (int64_t y = 0; y < ny; ++y) {
      float* to = patch + (plane * ny + y) * nx;
      const int64_t at_y = start[1] + (flip[1] ? ny - 1 - y : y);
      if (at_z < 0 || at_z >= shape_[0] || at_y < 0 || at_y >= shape_[1]) {
        std::fill_n(to, nx, 0.0f);
        continue;
      }
      const float* from =
          channel + ((at_z - origin[0]) * image.shape[1] + (at_y - origin[1])) * image.shape[2] - origin[2];
      const int64_t first = std::max<int64_t>(0, -start[2]), last = std::min(nx, shape_[2] - start[2]);
      std::fill_n(to, nx, 0.0f);
      if (flip[2])
        for (int64_t x = first; x < last; ++x) to[nx - 1 - x] = from[start[2] + x];
      else
        std::copy(from + start[2] + first, from + start[2] + last, to + first);
    }
  });
}

void Sliding::blend(const Shape& start, const Flip& flip, const float* logits, const std::string& provider) {
  const auto [nz, ny, nx] = manifest_.patch;
  const int64_t channels = manifest_.score_channels(), outputs = manifest_.outputs;
  std::atomic<bool> finite{true};
  parallel_for(nz, threads_for_patch(), [&, nz = nz, ny = ny, nx = nx](int64_t z) {
    std::vector<float> row(static_cast<size_t>(channels * nx));
    float* const own = row.data() + (channels - outputs) * nx;  // behind class 0 where that has no logit
    const int64_t at_z = start[0] + (flip[0] ? nz - 1 - z : z);
    for (int64_t y = 0; y < ny; ++y) {
      float odd = 0;  // becomes NaN with the first value that is not finite
      std::fill(row.data(), own, 0.0f);
      for (int64_t c = 0; c < outputs; ++c) {
        const float* from = logits + ((c * nz + z) * ny + y) * nx;
        for (int64_t x = 0; x < nx; ++x) odd += from[x] * 0.0f;
        std::copy_n(from, nx, own + c * nx);
      }
      if (odd != 0) finite = false;
      const int64_t at_y = start[1] + (flip[1] ? ny - 1 - y : y);
      if (at_z < 0 || at_z >= shape_[0] || at_y < 0 || at_y >= shape_[1]) continue;
      if (!manifest_.average_logits) softmax(row.data(), channels, nx);
      const int64_t first = std::max<int64_t>(0, -start[2]), last = std::min(nx, shape_[2] - start[2]);
      const float* weight = weights_.data() + ((at_z - start[0]) * ny + (at_y - start[1])) * nx;
      for (int64_t c = 0; c < channels; ++c) {
        float* score = scores_.channel(c) + (at_z * shape_[1] + at_y) * shape_[2] + start[2];
        const float* value = row.data() + c * nx;
        if (flip[2])
          for (int64_t x = first; x < last; ++x) score[x] += value[nx - 1 - x] * weight[x];
        else
          for (int64_t x = first; x < last; ++x) score[x] += value[x] * weight[x];
      }
    }
  });
  if (!finite)
    fail(MEDNEXT_E_ENGINE, provider, " at ", manifest_.precision,
         " returned NaN or infinite logits; the usual cause is overflow in fp16. Export again at fp32 or bf16, or keep "
         "the layers that overflow in fp32");
}

Volume Sliding::finish() {
  parallel_for(scores_.channels * shape_[0], threads_, [&](int64_t plane) {
    const int64_t slice = shape_[1] * shape_[2];
    float* score = scores_.data.data() + plane * slice;
    const float* total = total_.data() + plane % shape_[0] * slice;
    for (int64_t i = 0; i < slice; ++i) score[i] /= total[i];
  });
  return std::move(scores_);
}

std::vector<float> Sliding::finish_classes() {
  Volume scores = finish();
  const int64_t size = voxels(scores.shape);
  if (manifest_.average_logits) softmax(scores.data.data(), scores.channels, size);
  std::vector<float> mean;
  for (int64_t c = 0; c < scores.channels; ++c) {
    const double sum = std::accumulate(scores.channel(c), scores.channel(c) + size, 0.0);
    mean.push_back(static_cast<float>(sum / static_cast<double>(size)));
  }
  return mean;
}

}  // namespace mednext
