// Weight gradient of a depthwise convolution: dw[t] = sum over o of small[o] * large[S * o + t - P], with small = dy
// and large = x; in a transposed convolution the two change roles.
//
// A block marches along z over (y, x) tiles. Every plane of both tensors comes into shared memory once (x with its
// halo), and the K^3 sums of the block's channels lie in the registers of its threads: all of them in each thread
// at k3, one kz for each group of threads at k5 and k7, so nothing is read K^3 times. In 2-D (KZ = 1) there are K^2 of
// them: all in each thread at k3 and k5, those of three or four ky for each group at k7 and k9. The sums of a block go
// to the workspace, and a second kernel adds the blocks in a fixed order: no atomics, the same bits every time.
//
// Bounds are those of the forward pass (dwconv3d_direct.h): the same multiplications, two reads in place of a read
// and a write.
#pragma once

#include "mednext/tile.h"

namespace mednext {

struct WeightArgs {
  const void* small;
  const void* large;
  float* partials;  // [blocks_x][KZ K^2][C]
  Extent small_size, large_size;
  int n, c;
  int tiles_x, tiles_y, chunks;
  int chunk;  // planes of `small` in one piece of work
  bool wide_small, wide_large;
};

template <class T, int K, int S, int KZ>
struct WeightGradient {
  using Args = WeightArgs;
  static constexpr int V = T::WIDTH, P = K / 2, CHANNELS = LANES * V;
  static constexpr bool FLAT = KZ == 1;
  static constexpr int SZ = FLAT ? 1 : S, PZ = KZ / 2, A = (KZ + SZ - 1) / SZ;
  static constexpr int G = !FLAT && K == 3 ? K : 1;                // values of kz in a thread
  static constexpr int GY = FLAT && K > 5 ? (K == 7 ? 4 : 3) : K;  // values of ky; the last group may have fewer
  static constexpr int GROUPS = FLAT ? (K + GY - 1) / GY : KZ / G;
  static constexpr int X = S == 1 ? 8 : 4;
  static constexpr int HEIGHT = S == 1 && (FLAT || K == 3) ? 16 : 8;
  // Rows worked on at a time.
  static constexpr int COLUMNS = FLAT ? (GROUPS > 1 ? 8 : HEIGHT) : K == 3 ? HEIGHT : K == 5 ? 4 : 2;
  static constexpr int THREADS = LANES * COLUMNS * GROUPS;
  static constexpr int MIN_BLOCKS = FLAT && K < 9 ? 2 : 1;
  static constexpr int OVERHEAD = A - 1;
  using Small = Tile<HEIGHT, X, 1>;
  using Large = Tile<S*(HEIGHT - 1) + K, S*(X - 1) + K, S>;
  static constexpr int RING = A + 1;  // planes of `small`: the A in use and the next
  static constexpr int STEP_BYTES = SZ * Large::BYTES;
  static constexpr int RING_OFFSET = 2 * STEP_BYTES;
  static constexpr int SHARED = RING_OFFSET + RING * Small::BYTES;
  static_assert(SHARED <= 99 * 1024, "the smallest limit of a block among the architectures (8.6, 8.9, 12.0)");
  static_assert(FLAT || K != 7 || (LANES * COLUMNS % 32 == 0 && HEIGHT % COLUMNS == 0),
                "a warp keeps together in add_rows");
  static_assert(K * THREADS * V * 4 <= SHARED, "the sum over a block's columns reuses all of it");

  using Sums = float[G][GY][K][V];

  // One row of `small` against the rows of one plane of `large`, for the kz and ky of this thread that meet there.
  // `SUB` is kz % SZ at k3, where kz is known when compiled; -1 elsewhere. `rows`: of `large`, GY at most.
  template <int SUB>
  MEDNEXT_DEVICE static void add_rows(const char* large, int rows, const float (&small)[G][X][V], Sums& sums) {
#pragma unroll
    for (int ky = 0; ky < GY; ++ky) {
      if (FLAT && K % GY != 0 && ky >= rows) break;
      // At k7 the sums take 98 registers; rows read ahead of their turn would push some of them out.
      if (K == 7 && !FLAT) warp_order();
      float in[Large::WIDTH][V];
      read_row<T>(large + ky * Large::PITCH, in);
#pragma unroll
      for (int g = 0; g < G; ++g) {
        if (SUB >= 0 && g % SZ != SUB) continue;
#pragma unroll
        for (int kx = 0; kx < K; ++kx) {
#pragma unroll
          for (int x = 0; x < X; ++x) {
#pragma unroll
            for (int v = 0; v < V; ++v) sums[g][ky][kx][v] += small[g][x][v] * in[S * x + kx][v];
          }
        }
      }
    }
  }

  // The sums of the block's columns, K taps at a time, into its partial.
  MEDNEXT_DEVICE static void write_sums(const Args& a, int c0, const Sums& sums, float* table) {
    const int lane = thread_index() % LANES, column = thread_index() / LANES % COLUMNS;
    const int group = thread_index() / (LANES * COLUMNS);
    float* partial = a.partials + static_cast<int64_t>(block_x()) * (KZ * K * K) * a.c + c0;
#pragma unroll
    for (int g = 0; g < G; ++g) {
#pragma unroll
      for (int ky = 0; ky < GY; ++ky) {
        barrier();
#pragma unroll
        for (int kx = 0; kx < K; ++kx) {
#pragma unroll
          for (int v = 0; v < V; ++v) {
            table[((kx * GROUPS + group) * COLUMNS + column) * CHANNELS + lane * V + v] = sums[g][ky][kx][v];
          }
        }
        barrier();
        for (int i = thread_index(); i < K * GROUPS * CHANNELS; i += THREADS) {
          const int channel = i % CHANNELS, kx = i / CHANNELS / GROUPS, part = i / CHANNELS % GROUPS;
          const int tap_z = FLAT ? 0 : part * G + g, tap_y = FLAT ? part * GY + ky : ky;
          if (c0 + channel >= a.c || tap_y >= K) continue;
          float sum = 0;
          for (int j = 0; j < COLUMNS; ++j) sum += table[(i / CHANNELS * COLUMNS + j) * CHANNELS + channel];
          partial[static_cast<int64_t>((tap_z * K + tap_y) * K + kx) * a.c + channel] = sum;
        }
      }
    }
  }

  // Grid: (blocks, channel tiles, 1); block b takes the pieces b, b + blocks, ...
  MEDNEXT_DEVICE static void run(const Args& a, char* shared) {
    const int lane = thread_index() % LANES, column = thread_index() / LANES % COLUMNS;
    const int group = thread_index() / (LANES * COLUMNS);
    const int c0 = block_y() * CHANNELS;
    Sums sums;
#pragma unroll
    for (int g = 0; g < G; ++g) {
#pragma unroll
      for (int ky = 0; ky < GY; ++ky) {
#pragma unroll
        for (int kx = 0; kx < K; ++kx) {
#pragma unroll
          for (int v = 0; v < V; ++v) sums[g][ky][kx][v] = 0;
        }
      }
    }

    const int64_t pieces = static_cast<int64_t>(a.tiles_x) * a.tiles_y * a.chunks * a.n;
    for (int64_t piece = block_x(); piece < pieces; piece += blocks_x()) {
      const int x0 = static_cast<int>(piece % a.tiles_x) * X;
      const int y0 = static_cast<int>(piece / a.tiles_x % a.tiles_y) * HEIGHT;
      const int64_t rest = piece / a.tiles_x / a.tiles_y;
      const int z0 = static_cast<int>(rest % a.chunks) * a.chunk, n = static_cast<int>(rest / a.chunks);
      const int z1 = z0 + a.chunk < a.small_size.d ? z0 + a.chunk : a.small_size.d;
      const PlaneLoader<T, Small, THREADS> small(a.small, a.small_size, a.c, n, y0, x0, c0, a.wide_small);
      const PlaneLoader<T, Large, THREADS> large(a.large, a.large_size, a.c, n, S * y0 - P, S * x0 - P, c0,
                                                 a.wide_large);
      const int steps = z1 - z0 + A - 1, first = SZ * z0 - PZ;
      const auto start = [&](int step) {
#pragma unroll
        for (int sub = 0; sub < SZ; ++sub) {
          large.start(shared + step % 2 * STEP_BYTES + sub * Large::BYTES, first + SZ * step + sub);
        }
        if (z0 + step < z1) small.start(shared + RING_OFFSET + step % RING * Small::BYTES, z0 + step);
        copies_commit();
      };
      // Plane z0 + step - kz / SZ of `small` meets tap kz; planes of other pieces count as zeros.
      const auto meets = [&](int step, int kz) { return step >= kz / SZ && z0 + step - kz / SZ < z1; };
      const auto small_row = [&](int step, int kz, int row) {
        return shared + RING_OFFSET + (step - kz / SZ) % RING * Small::BYTES + row * Small::PITCH + lane * 4;
      };

      barrier();  // nobody reads the planes of the piece before
      start(0);
      for (int step = 0; step < steps; ++step) {
        copies_wait<0>();
        barrier();  // all copies of this step have landed; nobody reads those of the step before
        if (step + 1 < steps) start(step + 1);
        const char* planes = shared + step % 2 * STEP_BYTES + lane * 4;
        if (G == 1) {
          const int kz = FLAT ? 0 : group, sub = kz % SZ, ky = FLAT ? group * GY : 0;
          if (!meets(step, kz) || !large.has(first + SZ * step + sub)) continue;
#pragma unroll 1
          for (int row = column; row < HEIGHT; row += COLUMNS) {
            float from[G][X][V];
            read_row<T>(small_row(step, kz, row), from[0]);
            add_rows<-1>(planes + sub * Large::BYTES + (S * row + ky) * Large::PITCH, K - ky, from, sums);
          }
        } else {
          float from[G][X][V];
#pragma unroll
          for (int g = 0; g < G; ++g) {
            if (meets(step, g)) {
              read_row<T>(small_row(step, g, column), from[g]);
            } else {
#pragma unroll
              for (int x = 0; x < X; ++x) {
#pragma unroll
                for (int v = 0; v < V; ++v) from[g][x][v] = 0;
              }
            }
          }
          const char* rows = planes + S * column * Large::PITCH;
          if (large.has(first + SZ * step)) add_rows<0>(rows, K, from, sums);
          if (SZ == 2 && large.has(first + SZ * step + 1)) add_rows<SZ - 1>(rows + Large::BYTES, K, from, sums);
        }
      }
    }
    write_sums(a, c0, sums, reinterpret_cast<float*>(shared));
  }
};

struct SumArgs {
  const float* partials;  // [blocks][size]
  float* sum;             // [size]
  int64_t blocks, size;
};

// Adds the partials of all blocks, in a fixed order.
struct SumPartials {
  using Args = SumArgs;
  static constexpr int COLUMNS = 32, WALKERS = 8, THREADS = COLUMNS * WALKERS, MIN_BLOCKS = 4;
  static constexpr int SHARED = THREADS * 4;

  MEDNEXT_DEVICE static void run(const Args& a, char* shared) {
    float* table = reinterpret_cast<float*>(shared);
    const int column = thread_index() % COLUMNS, walker = thread_index() / COLUMNS;
    const int64_t i = static_cast<int64_t>(block_x()) * COLUMNS + column;
    float sum = 0;
    if (i < a.size) {
      for (int64_t b = walker; b < a.blocks; b += WALKERS) sum += a.partials[b * a.size + i];
    }
    table[thread_index()] = sum;
    barrier();
    if (walker != 0 || i >= a.size) return;
    for (int w = 1; w < WALKERS; ++w) sum += table[w * COLUMNS + column];
    a.sum[i] = sum;
  }
};

}  // namespace mednext
