// Any odd kernel size, one output element after the other straight from device memory: right, not quick. For the
// sizes that have no kernel of their own.
#pragma once

#include "mednext/moments.h"
#include "mednext/tile.h"

namespace mednext {

// How outputs of an axis come from its inputs.
struct Axis {
  int taps, stride;
  bool transposed;

  // The input that tap t of output o takes, of `size`; -1 when there is none.
  MEDNEXT_DEVICE int source(int o, int t, int size) const {
    const int pad = taps / 2;
    if (transposed && (o + pad - t) % 2 != 0) return -1;
    const int i = transposed ? (o + pad - t) / 2 : stride * o + t - pad;
    return i >= 0 && i < size ? i : -1;
  }
};

struct GeneralArgs {
  const void* x;
  const float* weight;
  const float* bias;  // may be null
  void* y;
  float* partials;  // as in ConvArgs
  Extent in, out;
  int c;
  Axis z, yx;
  int64_t segment;  // output voxels of a block
  bool flip;
};

struct Voxel {
  int z, y, x;

  MEDNEXT_DEVICE Voxel(int64_t index, const Extent& size)
      : z(static_cast<int>(index / size.w / size.h)),
        y(static_cast<int>(index / size.w % size.h)),
        x(static_cast<int>(index % size.w)) {}
};

// Grid: (segments, channel tiles, n); 32 channels and 8 voxels at a time.
template <class T>
struct General {
  using Args = GeneralArgs;
  using Element = typename T::Element;
  static constexpr int CHANNELS = 32, WALKERS = 8, THREADS = CHANNELS * WALKERS, MIN_BLOCKS = 2;
  static constexpr int SHARED = THREADS * static_cast<int>(sizeof(Moments));

  MEDNEXT_DEVICE static void run(const Args& a, char* shared) {
    const int walker = thread_index() / CHANNELS, c0 = block_y() * CHANNELS, c = c0 + thread_index() % CHANNELS;
    const int64_t voxels = static_cast<int64_t>(a.out.d) * a.out.h * a.out.w;
    const int64_t begin = block_x() * a.segment, end = begin + a.segment < voxels ? begin + a.segment : voxels;
    const int64_t inputs = static_cast<int64_t>(a.in.d) * a.in.h * a.in.w;
    const Element* x = static_cast<const Element*>(a.x) + block_z() * inputs * a.c;
    Element* y = static_cast<Element*>(a.y) + block_z() * voxels * a.c;
    const int k = a.yx.taps, all = a.z.taps * k * k;
    Moments moments;
    for (int64_t index = begin + walker; index < end && c < a.c; index += WALKERS) {
      const Voxel o(index, a.out);
      float sum = a.bias ? a.bias[c] : 0.0f;
      for (int kz = 0; kz < a.z.taps; ++kz) {
        const int z = a.z.source(o.z, kz, a.in.d);
        for (int ky = 0; ky < k && z >= 0; ++ky) {
          const int yi = a.yx.source(o.y, ky, a.in.h);
          for (int kx = 0; kx < k && yi >= 0; ++kx) {
            const int xi = a.yx.source(o.x, kx, a.in.w);
            if (xi < 0) continue;
            const int tap = (kz * k + ky) * k + kx;
            const float w = a.weight[static_cast<int64_t>(a.flip ? all - 1 - tap : tap) * a.c + c];
            sum += w * T::widen(x[((static_cast<int64_t>(z) * a.in.h + yi) * a.in.w + xi) * a.c + c]);
          }
        }
      }
      y[index * a.c + c] = T::narrow(sum);
      Moments one;
      one.count = 1, one.mean = sum;
      moments.merge(one);
    }
    if (!a.partials) return;
    Moments* table = reinterpret_cast<Moments*>(shared);
    table[thread_index()] = moments;
    barrier();
    const int64_t block = static_cast<int64_t>(block_z()) * blocks_x() + block_x();
    write_partial<WALKERS, CHANNELS, THREADS>(table, a.partials + block * 3 * a.c, c0, a.c);
  }
};

struct GeneralWeightArgs {
  const void* small;
  const void* large;
  float* partials;  // [segments][KZ K^2][C]
  Extent small_size, large_size;
  int c;
  Axis z, yx;
  int64_t voxels, segment;  // of `small`, over all n; of a block
};

// Grid: (segments, channel tiles, taps). See dwconv3d_weight.h for small and large.
template <class T>
struct GeneralWeightGradient {
  using Args = GeneralWeightArgs;
  using Element = typename T::Element;
  static constexpr int CHANNELS = 32, WALKERS = 8, THREADS = CHANNELS * WALKERS, MIN_BLOCKS = 2;
  static constexpr int SHARED = THREADS * 4;

  MEDNEXT_DEVICE static void run(const Args& a, char* shared) {
    const int lane = thread_index() % CHANNELS, walker = thread_index() / CHANNELS, c = block_y() * CHANNELS + lane;
    const int k = a.yx.taps, tap = block_z();
    const int64_t begin = block_x() * a.segment, end = begin + a.segment < a.voxels ? begin + a.segment : a.voxels;
    const int64_t planes = static_cast<int64_t>(a.small_size.d) * a.small_size.h * a.small_size.w;
    const Element* small = static_cast<const Element*>(a.small);
    const Element* large = static_cast<const Element*>(a.large);
    float sum = 0;
    for (int64_t index = begin + walker; index < end && c < a.c; index += WALKERS) {
      const Voxel o(index % planes, a.small_size);
      const int z = a.z.source(o.z, tap / k / k, a.large_size.d);
      const int y = a.yx.source(o.y, tap / k % k, a.large_size.h);
      const int x = a.yx.source(o.x, tap % k, a.large_size.w);
      if (z < 0 || y < 0 || x < 0) continue;
      const int64_t voxel = ((index / planes * a.large_size.d + z) * a.large_size.h + y) * a.large_size.w + x;
      sum += T::widen(small[index * a.c + c]) * T::widen(large[voxel * a.c + c]);
    }
    float* table = reinterpret_cast<float*>(shared);
    table[thread_index()] = sum;
    barrier();
    if (walker != 0 || c >= a.c) return;
    for (int w = 1; w < WALKERS; ++w) sum += table[w * CHANNELS + lane];
    a.partials[(static_cast<int64_t>(block_x()) * a.z.taps * k * k + tap) * a.c + c] = sum;
  }
};

}  // namespace mednext
