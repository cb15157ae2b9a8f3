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

// The same from sums around the mean of the first values: a few instructions a value. Those are among the values that
// are summed; where they are the n-th part of all, the squares hold at least the n-th part of what the square of the
// sum takes away: n units in the last place are lost at most, whatever mean and spread are.
class PivotSums {
 public:
  // Adds those of `values` whose bit in `valid` is set; where any is, the first is. The first time they give the pivot.
  template <int COUNT>
  MEDNEXT_DEVICE void add(const float (&values)[COUNT], unsigned valid, bool first) {
    constexpr unsigned ALL = (1u << COUNT) - 1;
    if (first && (valid & 1)) {
      int count = 0;
      float sum = 0;
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        if (valid >> i & 1) sum += values[i] - values[0], ++count;
      }
      pivot_ = values[0] + sum / static_cast<float>(count);
    }
    if ((valid & ALL) == ALL) {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) add(values[i] - pivot_);
    } else {
#pragma unroll
      for (int i = 0; i < COUNT; ++i) {
        if (valid >> i & 1) add(values[i] - pivot_);
      }
    }
  }

  MEDNEXT_DEVICE Moments moments(float count) const {
    Moments all;
    if (count == 0) return all;
    all.count = count;
    all.mean = pivot_ + sum_ / count;
    const float moment = squares_ - sum_ * (sum_ / count);
    all.moment = moment > 0 ? moment : 0.0f;
    return all;
  }

 private:
  MEDNEXT_DEVICE void add(float distance) {
    sum_ += distance;
    squares_ += distance * distance;
  }

  float pivot_ = 0, sum_ = 0, squares_ = 0;
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
