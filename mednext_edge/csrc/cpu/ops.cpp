#include "ops.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "../runtime/parallel.h"

namespace mednext {
namespace {

// Parts of which every one has sums of its own; the same for any number of threads, so that results are.
constexpr int64_t PARTS = 16;

size_t index(int64_t i) { return static_cast<size_t>(i); }

// Into how many slabs each sample's planes are cut, for about `wanted` in all.
int64_t slabs_each(int64_t samples, int64_t planes, int64_t wanted) {
  return std::min(planes, std::max<int64_t>(1, (wanted + samples - 1) / samples));
}

// Calls part(slab, its number, scratch) for the planes of all samples; `plane` is the size of one with its margin.
template <class Part>
void over_slabs(int64_t samples, int64_t planes, int64_t wanted, int threads, int64_t plane, int kept,
                const Part& part) {
  const int64_t each = slabs_each(samples, planes, wanted);
  parallel_for(samples * each, threads, [&](int64_t i) {
    std::vector<float> scratch(index(plane * kept), 0.0f);
    const int64_t k = i % each;
    part(Slab{i / each, k * planes / each, (k + 1) * planes / each}, i, scratch.data());
  });
}

// Calls part(sample, number of the part, first voxel, one beyond the last).
template <class Part>
void over_voxels(Normed size, int threads, const Part& part) {
  parallel_for(size.n * PARTS, threads, [&](int64_t i) {
    const int64_t k = i % PARTS;
    part(i / PARTS, i, k * size.voxels / PARTS, (k + 1) * size.voxels / PARTS);
  });
}

// Two sums of each sample and channel, [n, 2, c].
template <class Part>
std::vector<double> two_sums(Normed size, int threads, const Part& part) {
  const int64_t each = 2 * size.c;
  std::vector<double> partial(index(size.n * PARTS * each), 0.0), sums(index(size.n * each), 0.0);
  over_voxels(size, threads, [&](int64_t sample, int64_t number, int64_t begin, int64_t end) {
    part(sample, begin, end, partial.data() + number * each);
  });
  for (int64_t i = 0; i < size.n * PARTS; ++i)
    for (int64_t k = 0; k < each; ++k) sums[index(i / PARTS * each + k)] += partial[index(i * each + k)];
  return sums;
}

}  // namespace

void convolve(const CpuKernels& kernels, const mednext_cpu_dwconv3d& l, const float* x, const float* weight,
              const float* bias, float* y, int threads) {
  const int64_t pad = l.kernel / 2, plane = (l.h + 2 * pad) * (l.w + 2 * pad) * l.c;
  over_slabs(l.n, (l.d - 1) / l.stride + 1, 2 * threads, threads, plane, l.kernel,
             [&](Slab slab, int64_t, float* scratch) { kernels.forward(l, slab, x, weight, bias, y, scratch); });
}

void adjoint(const CpuKernels& kernels, const mednext_cpu_dwconv3d& l, const float* y, const float* weight,
             const float* bias, float* x, int threads) {
  const int64_t k = l.kernel, taps = k * k * k, margin = (k / 2 + 1) / 2;
  if (l.stride == 1) {
    // It is the convolution with the taps in reverse order.
    std::vector<float> reversed(index(taps * l.c));
    for (int64_t i = 0; i < taps; ++i) std::copy_n(weight + i * l.c, l.c, &reversed[index((taps - 1 - i) * l.c)]);
    convolve(kernels, l, y, reversed.data(), bias, x, threads);
    return;
  }
  const int64_t plane = ((l.h - 1) / 2 + 1 + 2 * margin) * ((l.w - 1) / 2 + 1 + 2 * margin) * l.c;
  over_slabs(l.n, l.d, 2 * threads, threads, plane, l.kernel,
             [&](Slab slab, int64_t, float* scratch) { kernels.adjoint(l, slab, y, weight, bias, x, scratch); });
}

void weight_gradient(const CpuKernels& kernels, const mednext_cpu_dwconv3d& l, const float* x, const float* y,
                     float* grad, int threads) {
  const int64_t pad = l.kernel / 2, plane = (l.h + 2 * pad) * (l.w + 2 * pad) * l.c;
  const int64_t planes = (l.d - 1) / l.stride + 1, slabs = l.n * slabs_each(l.n, planes, PARTS);
  const int64_t size = int64_t{l.kernel} * l.kernel * l.kernel * l.c;
  std::vector<double> partial(index(slabs * size), 0.0);
  over_slabs(l.n, planes, PARTS, threads, plane, l.kernel, [&](Slab slab, int64_t number, float* scratch) {
    kernels.weight(l, slab, x, y, partial.data() + number * size, scratch);
  });
  for (int64_t i = 0; i < size; ++i) {
    double sum = 0;
    for (int64_t slab = 0; slab < slabs; ++slab) sum += partial[index(slab * size + i)];
    grad[i] = static_cast<float>(sum);
  }
}

void channel_norm(const CpuKernels& kernels, Normed size, const float* x, const float* gamma, const float* beta,
                  double eps, float* y, float* mean, float* rstd, int threads) {
  const int64_t c = size.c, volume = size.voxels * c;
  // Distances from the first voxel: squares of what lies near 0 do not cancel.
  const auto sums = two_sums(size, threads, [&](int64_t sample, int64_t begin, int64_t end, double* to) {
    kernels.norm_sums(begin, end, c, x + sample * volume, x + sample * volume, to);
  });
  std::vector<float> scale(index(size.n * c)), shift(index(c), 0.0f);
  if (beta) shift.assign(beta, beta + c);
  for (int64_t i = 0; i < size.n * c; ++i) {
    const int64_t sample = i / c, k = i % c;
    const double off = sums[index(2 * sample * c + k)] / static_cast<double>(size.voxels);
    const double square = sums[index((2 * sample + 1) * c + k)] / static_cast<double>(size.voxels);
    mean[i] = static_cast<float>(x[sample * volume + k] + off);
    rstd[i] = static_cast<float>(1 / std::sqrt(std::max(square - off * off, 0.0) + eps));
    scale[index(i)] = rstd[i] * (gamma ? gamma[k] : 1.0f);
  }
  over_voxels(size, threads, [&](int64_t sample, int64_t, int64_t begin, int64_t end) {
    kernels.norm_apply(begin, end, c, x + sample * volume, mean + sample * c, &scale[index(sample * c)], shift.data(),
                       y + sample * volume);
  });
}

void channel_norm_backward(const CpuKernels& kernels, Normed size, const float* grad, const float* x,
                           const float* gamma, const float* mean, const float* rstd, float* grad_x, float* grad_gamma,
                           float* grad_beta, int threads) {
  const int64_t c = size.c, volume = size.voxels * c;
  const auto sums = two_sums(size, threads, [&](int64_t sample, int64_t begin, int64_t end, double* to) {
    kernels.norm_grad_sums(begin, end, c, grad + sample * volume, x + sample * volume, mean + sample * c,
                           rstd + sample * c, to);
  });
  std::vector<float> level(index(size.n * c)), tilt(index(size.n * c)), scale(index(size.n * c));
  for (int64_t k = 0; k < c; ++k) {
    double down = 0, along = 0;
    for (int64_t sample = 0; sample < size.n; ++sample) {
      const double of_grad = sums[index(2 * sample * c + k)], product = sums[index((2 * sample + 1) * c + k)];
      const size_t at = index(sample * c + k);
      down += of_grad;
      along += product;
      level[at] = static_cast<float>(of_grad / static_cast<double>(size.voxels));
      tilt[at] = static_cast<float>(product / static_cast<double>(size.voxels)) * rstd[at];
      scale[at] = rstd[at] * (gamma ? gamma[k] : 1.0f);
    }
    grad_beta[k] = static_cast<float>(down);
    grad_gamma[k] = static_cast<float>(along);
  }
  over_voxels(size, threads, [&](int64_t sample, int64_t, int64_t begin, int64_t end) {
    const int64_t first = sample * c;
    kernels.norm_grad_apply(begin, end, c, grad + sample * volume, x + sample * volume, mean + first,
                            &level[index(first)], &tilt[index(first)], &scale[index(first)], grad_x + sample * volume);
  });
}

double fake_quantize_backward(const CpuKernels& kernels, int64_t count, const float* grad, const float* x,
                              float threshold, float* grad_x, int threads) {
  double partial[PARTS];
  parallel_for(PARTS, threads, [&](int64_t i) {
    partial[i] = kernels.fake_quantize_grad(i * count / PARTS, (i + 1) * count / PARTS, grad, x, threshold, grad_x);
  });
  double sum = 0;
  for (const double part : partial) sum += part;
  return sum;
}

}  // namespace mednext
