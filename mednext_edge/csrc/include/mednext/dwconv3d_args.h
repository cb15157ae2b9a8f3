// What every forward kernel is given, and where a block stands.
#pragma once

#include "mednext/tile.h"

namespace mednext {

struct ConvArgs {
  const void* x;
  const float* weight;
  const float* bias;  // may be null
  void* y;
  float* partials;  // moments of every block, [n][blocks_x][3][C]; null when none are wanted
  Extent in, out;
  int c;
  int tiles_x, tiles_y;
  int chunk;    // output planes of a block
  bool flip;    // taps in reverse: the data gradient of stride 1
  bool wide;    // see PlaneLoader
  bool packed;  // see RowWriter
};

// In int8 `weight` and `partials` are null, and `bias` is added after the scale.
struct Int8Args : ConvArgs {
  const int8_t* taps;  // [KZ K^2][C]
  const float* scale;  // [C]
};

// Block `block` of tiles_x * tiles_y * chunks, x fastest so that neighbours share their halo in L2.
struct Place {
  int x0, y0, z0, z1, c0, n;

  MEDNEXT_DEVICE Place(const ConvArgs& a, int width, int height, int block, int first_channel) {
    const int row = block / a.tiles_x;
    x0 = block % a.tiles_x * width;
    y0 = row % a.tiles_y * height;
    z0 = row / a.tiles_y * a.chunk;
    z1 = z0 + a.chunk < a.out.d ? z0 + a.chunk : a.out.d;
    c0 = first_channel;
    n = block_z();
  }
};

template <class T>
MEDNEXT_DEVICE void read_bias(const ConvArgs& a, int channel, float (&bias)[T::WIDTH]) {
#pragma unroll
  for (int v = 0; v < T::WIDTH; ++v) bias[v] = a.bias && channel + v < a.c ? a.bias[channel + v] : 0.0f;
}

}  // namespace mednext
