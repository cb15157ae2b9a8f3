// Mean and centred second moment, merged pairwise (Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm
// for Computing Sample Variances", 1979): no difference of large sums, so no cancellation.
#pragma once

#include "mednext/shim.h"

namespace mednext {

struct Moments {
  float count = 0, mean = 0, moment = 0;

  MEDNEXT_DEVICE void merge(const Moments& other) {
    if (other.count == 0) return;
    const float total = count + other.count;
    const float share = other.count / total;
    const float delta = other.mean - mean;
    mean += delta * share;
    moment += other.moment + delta * delta * count * share;
    count = total;
  }
};

// Partial moments lie as [n][block][3][C]; the last stage merges them in a fixed order.
struct MomentsArgs {
  const float* partials;
  float* mean;    // [n][C]
  float* moment;  // [n][C]
  int64_t blocks;
  int c;
};

struct MergeMoments {
  using Args = MomentsArgs;
  static constexpr int CHANNELS = 32, WALKERS = 8, THREADS = CHANNELS * WALKERS, MIN_BLOCKS = 4;
  static constexpr int SHARED = THREADS * static_cast<int>(sizeof(Moments));

  // Grid: (channels / 32, 1, n).
  MEDNEXT_DEVICE static void run(const Args& a, char* shared) {
    Moments* table = reinterpret_cast<Moments*>(shared);
    const int lane = thread_index() % CHANNELS, walker = thread_index() / CHANNELS;
    const int c = block_x() * CHANNELS + lane;
    Moments sum;
    if (c < a.c) {
      for (int64_t b = walker; b < a.blocks; b += WALKERS) {
        const float* partial = a.partials + ((block_z() * a.blocks + b) * 3) * a.c + c;
        Moments next;
        next.count = partial[0], next.mean = partial[a.c], next.moment = partial[2 * static_cast<int64_t>(a.c)];
        sum.merge(next);
      }
    }
    table[thread_index()] = sum;
    barrier();
    if (walker != 0 || c >= a.c) return;
    for (int w = 1; w < WALKERS; ++w) sum.merge(table[w * CHANNELS + lane]);
    a.mean[static_cast<int64_t>(block_z()) * a.c + c] = sum.mean;
    a.moment[static_cast<int64_t>(block_z()) * a.c + c] = sum.moment;
  }
};

// Writes a block's moments, one table entry per (row of threads, channel), as one partial.
template <int ROWS, int CHANNELS, int THREADS>
MEDNEXT_DEVICE void write_partial(const Moments* table, float* partial, int c0, int c) {
  for (int lane = thread_index(); lane < CHANNELS; lane += THREADS) {
    if (c0 + lane >= c) continue;
    Moments sum;
    for (int row = 0; row < ROWS; ++row) sum.merge(table[row * CHANNELS + lane]);
    partial[c0 + lane] = sum.count;
    partial[c + c0 + lane] = sum.mean;
    partial[2 * static_cast<int64_t>(c) + c0 + lane] = sum.moment;
  }
}

}  // namespace mednext
