// Depthwise convolution in int8 for the layers that tensor cores do not compute: one output element after the other
// straight from device memory, right, not quick.
#pragma once

#include "mednext/dwconv3d_general.h"

namespace mednext {

struct GeneralInt8Args {
  const int8_t* x;
  const int8_t* weight;
  const float* scale;
  const float* bias;  // may be null
  int8_t* y;
  Extent in, out;
  int c;
  Axis z, yx;
  int64_t segment;  // output voxels of a block
};

// Grid: (segments, channel tiles, n); 32 channels and 8 voxels at a time.
struct GeneralInt8 {
  using Args = GeneralInt8Args;
  static constexpr int CHANNELS = 32, WALKERS = 8, THREADS = CHANNELS * WALKERS, MIN_BLOCKS = 2, SHARED = 0;

  MEDNEXT_DEVICE static void run(const Args& a, char*) {
    const int walker = thread_index() / CHANNELS, c = block_y() * CHANNELS + thread_index() % CHANNELS;
    const int64_t voxels = static_cast<int64_t>(a.out.d) * a.out.h * a.out.w;
    const int64_t begin = block_x() * a.segment, end = begin + a.segment < voxels ? begin + a.segment : voxels;
    const int64_t inputs = static_cast<int64_t>(a.in.d) * a.in.h * a.in.w;
    const int8_t* x = a.x + block_z() * inputs * a.c;
    int8_t* y = a.y + block_z() * voxels * a.c;
    const int k = a.yx.taps;
    for (int64_t index = begin + walker; index < end && c < a.c; index += WALKERS) {
      const Voxel o(index, a.out);
      int32_t sum = 0;
      for (int kz = 0; kz < a.z.taps; ++kz) {
        const int z = a.z.source(o.z, kz, a.in.d);
        for (int ky = 0; ky < k && z >= 0; ++ky) {
          const int yi = a.yx.source(o.y, ky, a.in.h);
          for (int kx = 0; kx < k && yi >= 0; ++kx) {
            const int xi = a.yx.source(o.x, kx, a.in.w);
            if (xi < 0) continue;
            const int64_t from = (static_cast<int64_t>(z) * a.in.h + yi) * a.in.w + xi;
            sum += a.weight[static_cast<int64_t>((kz * k + ky) * k + kx) * a.c + c] * x[from * a.c + c];
          }
        }
      }
      y[index * a.c + c] = I8::requantise(sum, a.scale[c], a.bias ? a.bias[c] : 0.0f);
    }
  }
};

}  // namespace mednext
