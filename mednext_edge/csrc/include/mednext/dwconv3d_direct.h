// Depthwise convolution of stride 1 or 2: a block marches along z over a (y, x) tile.
//
// One input plane after the other comes into a ring of shared memory while the one before is used. Every plane
// serves all outputs that touch it at once: a thread keeps A = ceil(K / S) planes of partial sums in registers, X
// voxels along x each, so an input word read from shared memory once serves up to K * K * T::WIDTH multiplications
// and device memory is read once but for the halo.
//
// Bounds for one output element of stride 1 on an H200 (4.8 TB/s, 67 TFLOP/s of float FMA), in picoseconds:
//          memory   FMA
//   k3     fp32 1.67, fp16 0.83    0.81   fp32 memory; half precision takes some 43 instructions for 27 FMA (reads of
//                                         shared memory, conversions, copies), so instruction issue, near 1.3
//   k5     the same                3.73   FMA; one shared-memory read of a weight serves X * WIDTH of them
//   k7     the same               10.2    FMA
// These are counts from data sheets and machine code, not measurements.
// Stride 2 reads eight input elements for an output and is bound by memory at every K here.
//
// In 2-D (KZ = 1, K x K taps) planes have nothing to do with each other, and images are planes of one volume (see
// `flat` in runtime/cuda_api.cu): a block marches through images and keeps their weights. From data sheets and the
// source alone; issued are the FMA, reads of shared memory and conversions, not the copies:
//          memory   FMA    issued
//   k3     fp32 1.67, fp16 0.83    0.27   fp16 0.5, memory
//   k5     the same                0.75   fp32 1.2, memory; fp16 1.3
//   k7     the same                1.46   fp32 2.3, fp16 2.4
//   k9     the same                2.42   fp32 3.7, fp16 3.8
// So fp16 at k5 and k7 is left to tensor cores where they compute it (dwconv3d_banded.h).
#pragma once

#include "mednext/dwconv3d_args.h"
#include "mednext/row_writer.h"

namespace mednext {

template <class T, int K, int S, int KZ>
struct Direct {
  using Args = ConvArgs;
  static constexpr int V = T::WIDTH, P = K / 2, CHANNELS = LANES * V;
  static constexpr int SZ = KZ == 1 ? 1 : S, PZ = KZ / 2, A = (KZ + SZ - 1) / SZ;
  static constexpr int X = S == 1 ? 8 : 4, ROWS = S == 1 ? 16 : 8;  // the tile of outputs; one thread row each
  static constexpr int THREADS = LANES * ROWS;
  static constexpr bool FEW_SUMS = K == 3 || KZ == 1;
  static constexpr int MIN_BLOCKS = S == 1 ? (KZ == 1 ? (K < 7 ? 3 : 2) : K == 3 ? 2 : 1) : (FEW_SUMS ? 4 : 2);
  static constexpr int OVERHEAD = A - 1;  // steps of a block beside its output planes
  static constexpr int SLOTS = K == 3 ? 3 : 2;
  using Window = Tile<S*(ROWS - 1) + K, S*(X - 1) + K, S>;
  static constexpr int SHARED = SLOTS * Window::BYTES + KZ * K * K * CHANNELS * 4;
  static_assert(SHARED <= 99 * 1024, "the smallest limit of a block among the architectures (8.6, 8.9, 12.0)");
  static_assert(ROWS * CHANNELS * static_cast<int>(sizeof(Moments)) <= SLOTS * Window::BYTES, "moments reuse the ring");

  using Sums = float[A][X][V];

  // Plane q of the padded input reaches output (q - kz) / SZ: those kz with the parity of q, `SUB`.
  template <int SUB>
  MEDNEXT_DEVICE static void add_plane(const char* tile, const float* weight, int row, Sums& sums) {
#pragma unroll(K == 3 ? K : 1)
    for (int ky = 0; ky < K; ++ky) {
      float in[Window::WIDTH][V];
      read_row<T>(tile + (S * row + ky) * Window::PITCH, in);
#pragma unroll
      for (int j = 0; j < A; ++j) {
        const int kz = SZ * (A - 1 - j) + SUB;
        if (kz >= KZ) continue;
#pragma unroll
        for (int kx = 0; kx < K; ++kx) {
          const float* w = weight + ((kz * K + ky) * K + kx) * CHANNELS;
          float tap[V];
          memcpy(tap, w, sizeof tap);
#pragma unroll
          for (int x = 0; x < X; ++x) {
#pragma unroll
            for (int v = 0; v < V; ++v) sums[j][x][v] += tap[v] * in[S * x + kx][v];
          }
        }
      }
    }
  }

  // Grid: (tiles_x * tiles_y * chunks, channel tiles, n).
  MEDNEXT_DEVICE static void run(const Args& a, char* shared) {
    float* weights = reinterpret_cast<float*>(shared + SLOTS * Window::BYTES);
    const Place at(a, X, ROWS, block_x(), block_y() * CHANNELS);
    const int lane = thread_index() % LANES, row = thread_index() / LANES, channel = at.c0 + lane * V;
    const PlaneLoader<T, Window, THREADS> loader(a.x, a.in, a.c, at.n, S * at.y0 - P, S * at.x0 - P, at.c0, a.wide);
    RowWriter<T, X> writer(a.y, a.out, a.c, at.n, at.y0 + row, at.x0, channel, a.packed);
    read_weights<T, KZ * K * K, THREADS>(weights, a.weight, a.c, at.c0, a.flip);

    const int steps = at.z1 - at.z0 + A - 1, planes = SZ * (steps - 1) + 1, first = SZ * at.z0 - PZ;
    for (int i = 0; i < SLOTS - 1; ++i) {
      if (i < planes) loader.start(shared + i * Window::BYTES, first + i);
      copies_commit();
    }

    float bias[V];
    read_bias<T>(a, channel, bias);
    // sums[j] belongs to output plane z0 + step - (A - 1) + j.
    Sums sums;
#pragma unroll
    for (int j = 0; j < A; ++j) {
#pragma unroll
      for (int x = 0; x < X; ++x) {
#pragma unroll
        for (int v = 0; v < V; ++v) sums[j][x][v] = bias[v];
      }
    }

    int slot = 0, ahead = SLOTS - 1;  // of the plane in use, and of the one to fetch
    const auto next_plane = [&](int i) {
      copies_wait<SLOTS - 2>();
      barrier();  // all copies of plane i have landed; nobody reads plane i - 1 any more
      if (i + SLOTS - 1 < planes) loader.start(shared + ahead * Window::BYTES, first + i + SLOTS - 1);
      copies_commit();
      const char* tile = shared + slot * Window::BYTES + lane * 4;
      slot = slot + 1 == SLOTS ? 0 : slot + 1;
      ahead = ahead + 1 == SLOTS ? 0 : ahead + 1;
      return tile;
    };
    for (int step = 0; step < steps; ++step) {
#pragma unroll
      for (int x = 0; x < X; ++x) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
#pragma unroll
          for (int j = 0; j + 1 < A; ++j) sums[j][x][v] = sums[j + 1][x][v];
          sums[A - 1][x][v] = bias[v];
        }
      }
      // Planes and rows beyond the tensor are worked through as zeros: a branch around add_plane would turn the
      // shift, which otherwise is only a renaming of registers, into moves.
      add_plane<0>(next_plane(SZ * step), weights + lane * V, row, sums);
      if (SZ == 2 && step + 1 < steps) add_plane<SZ - 1>(next_plane(SZ * step + 1), weights + lane * V, row, sums);
      const int zo = at.z0 + step - (A - 1);
      if (zo < at.z0) continue;
      writer.store(zo, sums[0]);
      if (a.partials) writer.measure(sums[0]);
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
