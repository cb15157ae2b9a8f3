// Depthwise transposed convolution of stride 2, and the data gradient of a convolution of stride 2.
//
// Output o of an axis takes the taps t = o + P (mod 2) from input (o + P - t) / 2, so no zeros are ever inserted:
// a thread's X outputs along x know their taps when compiled, its row knows them by its parity, and along z an
// input plane is scattered into the K planes of partial sums that it reaches; two of them are complete after it.
//
// K^3 FMA serve eight outputs: bound by memory at k3 and k5 on every GPU of the table in dwconv3d_direct.h, and
// almost all of that traffic is the output. In 2-D (KZ = 1) a plane of inputs makes one of outputs, and K^2 FMA serve
// four of them.
#pragma once

#include "mednext/dwconv3d_args.h"
#include "mednext/row_writer.h"

namespace mednext {

template <class T, int K, int KZ>
struct Transposed {
  using Args = ConvArgs;
  static constexpr int V = T::WIDTH, P = K / 2, BEFORE = P / 2, CHANNELS = LANES * V;
  static constexpr int SZ = KZ == 1 ? 1 : 2, PZ = KZ / 2;
  static constexpr int X = 8, ROWS = 16, THREADS = LANES * ROWS;  // even, so that a tile starts at an even output
  static constexpr int MIN_BLOCKS = KZ == 1 ? 3 : K == 3 ? 2 : 1, SLOTS = 3;
  static constexpr int OVERHEAD = PZ;  // in output planes, what a block computes for its neighbours
  using Window = Tile<(ROWS - 1 + P) / 2 + BEFORE + 1, (X - 1 + P) / 2 + BEFORE + 1, 1>;
  static constexpr int SHARED = SLOTS * Window::BYTES + KZ * K * K * CHANNELS * 4;
  static_assert(SHARED <= 99 * 1024, "the smallest limit of a block among the architectures (8.6, 8.9, 12.0)");
  static_assert(ROWS * CHANNELS * static_cast<int>(sizeof(Moments)) <= SHARED, "moments reuse all of it");

  // sums[kz] is the output plane that tap kz of this input plane reaches.
  MEDNEXT_DEVICE static void add_plane(const char* tile, const float* weight, int row, float (&sums)[KZ][X][V]) {
#pragma unroll 1
    for (int ky = (row + P) % 2; ky < K; ky += 2) {
      float in[Window::WIDTH][V];
      read_row<T>(tile + ((row + P - ky) / 2 + BEFORE) * Window::PITCH, in);
#pragma unroll
      for (int kz = 0; kz < KZ; ++kz) {
#pragma unroll
        for (int kx = 0; kx < K; ++kx) {
          float tap[V];
          memcpy(tap, weight + ((kz * K + ky) * K + kx) * CHANNELS, sizeof tap);
#pragma unroll
          for (int x = 0; x < X; ++x) {
            if ((x + P - kx) % 2 != 0) continue;
#pragma unroll
            for (int v = 0; v < V; ++v) sums[kz][x][v] += tap[v] * in[(x + P - kx) / 2 + BEFORE][v];
          }
        }
      }
    }
  }

  // Grid: (tiles_x * tiles_y * chunks, channel tiles, n).
  MEDNEXT_DEVICE static void run(const Args& a, char* shared) {
    float* weights = reinterpret_cast<float*>(shared + SLOTS * Window::BYTES);
    const Place at(a, X, ROWS, block_x(), block_y() * CHANNELS);
    const int lane = thread_index() % LANES, group = thread_index() / LANES, channel = at.c0 + lane * V;
    // The half-warps of a warp take rows of one parity: 0 2 | 1 3 | 4 6 | 5 7 ...
    const int row = (group & ~3) + (group & 1) * 2 + (group >> 1 & 1);
    const PlaneLoader<T, Window, THREADS> loader(a.x, a.in, a.c, at.n, at.y0 / 2 - BEFORE, at.x0 / 2 - BEFORE, at.c0,
                                                 a.wide);
    RowWriter<T, X> writer(a.y, a.out, a.c, at.n, at.y0 + row, at.x0, channel, a.packed);
    read_weights<T, KZ * K * K, THREADS>(weights, a.weight, a.c, at.c0, a.flip);

    // The input planes that reach the outputs z0 .. z1 - 1; shifts round down, below zero too.
    const int first = (at.z0 - PZ + SZ - 1) >> (SZ - 1), planes = ((at.z1 - 1 + PZ) >> (SZ - 1)) - first + 1;
    for (int i = 0; i < SLOTS - 1; ++i) {
      if (i < planes) loader.start(shared + i * Window::BYTES, first + i);
      copies_commit();
    }

    float bias[V];
    read_bias<T>(a, channel, bias);
    float sums[KZ][X][V];
#pragma unroll
    for (int j = 0; j < KZ; ++j) {
#pragma unroll
      for (int x = 0; x < X; ++x) {
#pragma unroll
        for (int v = 0; v < V; ++v) sums[j][x][v] = bias[v];
      }
    }

    int slot = 0, ahead = SLOTS - 1;
    for (int i = 0; i < planes; ++i) {
      copies_wait<SLOTS - 2>();
      barrier();  // all copies of plane i have landed; nobody reads plane i - 1 any more
      if (i + SLOTS - 1 < planes) loader.start(shared + ahead * Window::BYTES, first + i + SLOTS - 1);
      copies_commit();
      add_plane(shared + slot * Window::BYTES + lane * 4, weights + lane * V, row, sums);
      slot = slot + 1 == SLOTS ? 0 : slot + 1;
      ahead = ahead + 1 == SLOTS ? 0 : ahead + 1;
#pragma unroll
      for (int j = 0; j < SZ; ++j) {
        const int zo = SZ * (first + i) - PZ + j;
        if (zo < at.z0 || zo >= at.z1) continue;
        writer.store(zo, sums[j]);
        if (a.partials) writer.measure(sums[j]);
      }
#pragma unroll
      for (int x = 0; x < X; ++x) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
#pragma unroll
          for (int j = 0; j < KZ; ++j) sums[j][x][v] = j + 2 < KZ ? sums[j + 2 < KZ ? j + 2 : j][x][v] : bias[v];
        }
      }
    }

    if (!a.partials) return;
    barrier();
    Moments* table = reinterpret_cast<Moments*>(shared);
#pragma unroll
    for (int v = 0; v < V; ++v) table[row * CHANNELS + lane * V + v] = writer.moments[v];
    barrier();
    const int64_t block = static_cast<int64_t>(at.n) * blocks_x() + block_x();
    write_partial<ROWS, CHANNELS, THREADS>(table, a.partials + block * 3 * a.c, at.c0, a.c);
  }
};

}  // namespace mednext
