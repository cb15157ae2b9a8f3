#include "spline.h"

#include <algorithm>
#include <cmath>

#include "parallel.h"

namespace mednext {
namespace {

constexpr int64_t kPad = 12;
constexpr int64_t kLines = 16;  // filtered together, so that the compiler can use vectors

// Poles of the filter from samples to B-spline coefficients (M. Unser, A. Aldroubi, M. Eden, "B-spline signal
// processing, part II", IEEE Trans. Signal Process. 41, 1993, table I).
std::vector<double> filter_poles(int order) {
  switch (order) {
    case 2: return {std::sqrt(8.0) - 3};
    case 3: return {std::sqrt(3.0) - 2};
    case 4:
      return {std::sqrt(664 - std::sqrt(438976.0)) + std::sqrt(304.0) - 19,
              std::sqrt(664 + std::sqrt(438976.0)) - std::sqrt(304.0) - 19};
    case 5:
      return {std::sqrt(67.5 - std::sqrt(4436.25)) + std::sqrt(26.25) - 6.5,
              std::sqrt(67.5 + std::sqrt(4436.25)) - std::sqrt(26.25) - 6.5};
    default: return {};
  }
}

// The centred cardinal B-spline of a degree at x, by its recursion.
double b_spline(int degree, double x) {
  if (degree == 0) return x >= -0.5 && x < 0.5 ? 1 : 0;
  const double half = (degree + 1) / 2.0;
  return ((half + x) * b_spline(degree - 1, x + 0.5) + (half - x) * b_spline(degree - 1, x - 0.5)) / degree;
}

// Where each new voxel reads, and with which weights; indices are of the padded line.
struct Taps {
  std::vector<int64_t> first;
  std::vector<double> weights;  // order + 1 a voxel
};

Taps taps(int64_t from, int64_t to, int order) {
  Taps out;
  const double ratio = static_cast<double>(from) / static_cast<double>(to);
  const double last = static_cast<double>(from + 2 * kPad - 1);
  for (int64_t i = 0; i < to; ++i) {
    const double x = std::clamp((static_cast<double>(i) + 0.5) * ratio - 0.5 + kPad, 0.0, last);
    const double knot = std::floor(order % 2 ? x : x + 0.5);
    out.first.push_back(static_cast<int64_t>(knot) - order / 2);
    for (int k = 0; k <= order; ++k) out.weights.push_back(b_spline(order, x - static_cast<double>(out.first[i] + k)));
  }
  return out;
}

// Samples -> coefficients of kLines lines at once, in place, mirrored at both ends: [n][kLines].
void filter(double* c, int64_t n, const std::vector<double>& poles) {
  double gain = 1;
  for (const double z : poles) gain *= (1 - z) * (1 - 1 / z);
  for (int64_t i = 0; i < n * kLines; ++i) c[i] *= gain;
  for (const double z : poles) {
    const double turn = std::pow(z, static_cast<double>(n - 1));
    double* const end = c + (n - 1) * kLines;
    for (int64_t line = 0; line < kLines; ++line) c[line] += turn * end[line];
    double power = z;
    // Powers beyond the rounding of a double change nothing.
    for (int64_t i = 1; i < n - 1 && std::abs(power) > 1e-40; ++i, power *= z)
      for (int64_t line = 0; line < kLines; ++line)
        c[line] += power * (c[i * kLines + line] + turn * c[(n - 1 - i) * kLines + line]);
    for (int64_t line = 0; line < kLines; ++line) c[line] /= 1 - turn * turn;
    for (int64_t i = kLines; i < n * kLines; ++i) c[i] += z * c[i - kLines];
    for (int64_t line = 0; line < kLines; ++line) end[line] = (z * end[line - kLines] + end[line]) * z / (z * z - 1);
    for (int64_t i = (n - 1) * kLines - 1; i >= 0; --i) c[i] = z * (c[i + kLines] - c[i]);
  }
}

// One axis: [outer][from][inner] -> [outer][to][inner].
template <class In>
std::vector<double> along_axis(const In* source, int64_t outer, int64_t from, int64_t inner, int64_t to, int order,
                               int threads) {
  std::vector<double> out(static_cast<size_t>(outer * to * inner));
  const auto poles = filter_poles(order);
  const Taps reading = taps(from, to, order);
  const int64_t padded = from + 2 * kPad, lines = outer * inner, blocks = (lines + kLines - 1) / kLines;
  const int64_t chunk = std::max<int64_t>(1, blocks / (8 * std::max(threads, 1)));
  parallel_for((blocks + chunk - 1) / chunk, threads, [&](int64_t part) {
    std::vector<double> c(static_cast<size_t>(padded * kLines));
    for (int64_t block = part * chunk; block < std::min(blocks, (part + 1) * chunk); ++block) {
      int64_t in_base[kLines], out_base[kLines];
      const int64_t count = std::min(kLines, lines - block * kLines);
      for (int64_t l = 0; l < kLines; ++l) {
        const int64_t line = block * kLines + std::min(l, count - 1);
        in_base[l] = line / inner * from * inner + line % inner;
        out_base[l] = line / inner * to * inner + line % inner;
      }
      for (int64_t i = 0; i < padded; ++i) {
        const int64_t row = std::clamp<int64_t>(i - kPad, 0, from - 1) * inner;
        for (int64_t l = 0; l < kLines; ++l) c[i * kLines + l] = static_cast<double>(source[in_base[l] + row]);
      }
      filter(c.data(), padded, poles);
      for (int64_t i = 0; i < to; ++i) {
        double sum[kLines] = {};
        for (int k = 0; k <= order; ++k) {
          const double weight = reading.weights[i * (order + 1) + k];
          const double* row = c.data() + (reading.first[i] + k) * kLines;
          for (int64_t l = 0; l < kLines; ++l) sum[l] += weight * row[l];
        }
        for (int64_t l = 0; l < count; ++l) out[out_base[l] + i * inner] = sum[l];
      }
    }
  });
  return out;
}

// Back into the range of the input, which splines of higher order leave: of everything, or slice by slice.
void clip(std::vector<float>& out, const float* source, const Shape& from, const Shape& to,
          std::optional<int> skipped) {
  const auto strides = [&](const Shape& shape) { return Shape{shape[1] * shape[2], shape[2], 1}; };
  const int64_t slices = skipped ? from[*skipped] : 1;
  const Shape in = strides(from), result = strides(to);
  for (int64_t s = 0; s < slices; ++s) {
    Box read{{}, from}, write{{}, to};
    if (skipped) read.start[*skipped] = write.start[*skipped] = s;
    if (skipped) read.stop[*skipped] = write.stop[*skipped] = s + 1;
    float low = HUGE_VALF, high = -HUGE_VALF;
    for (int64_t z = read.start[0]; z < read.stop[0]; ++z)
      for (int64_t y = read.start[1]; y < read.stop[1]; ++y)
        for (int64_t x = read.start[2]; x < read.stop[2]; ++x) {
          const float value = source[z * in[0] + y * in[1] + x];
          low = std::min(low, value), high = std::max(high, value);
        }
    for (int64_t z = write.start[0]; z < write.stop[0]; ++z)
      for (int64_t y = write.start[1]; y < write.stop[1]; ++y)
        for (int64_t x = write.start[2]; x < write.stop[2]; ++x) {
          float& value = out[z * result[0] + y * result[1] + x];
          value = std::clamp(value, low, high);
        }
  }
}

}  // namespace

std::vector<float> spline_resample(const float* source, const Shape& from, const Shape& to, int order,
                                   std::optional<int> skipped, int threads) {
  // Axes that shrink most come first, so that what lies between is small.
  std::vector<int> axes;
  for (int axis = 0; axis < 3; ++axis)
    if (axis != skipped && from[axis] != to[axis]) axes.push_back(axis);
  std::stable_sort(axes.begin(), axes.end(), [&](int a, int b) { return to[a] * from[b] < to[b] * from[a]; });
  Shape shape = from;
  std::vector<double> values;
  for (const int axis : axes) {
    int64_t outer = 1, inner = 1;
    for (int i = 0; i < axis; ++i) outer *= shape[i];
    for (int i = axis + 1; i < 3; ++i) inner *= shape[i];
    values = values.empty() ? along_axis(source, outer, shape[axis], inner, to[axis], order, threads)
                            : along_axis(values.data(), outer, shape[axis], inner, to[axis], order, threads);
    shape[axis] = to[axis];
  }
  std::vector<float> out = values.empty() ? std::vector<float>(source, source + voxels(from))
                                          : std::vector<float>(values.begin(), values.end());
  if (order > 1 && !values.empty()) clip(out, source, from, shape, skipped);
  return out;
}

}  // namespace mednext
