// The feed-forward half of a block in float: norm, product, GELU, product, residual sum. The hidden tensor, two to eight
// times as wide as the block, stays in the cache.
#pragma once

#include "gelu.h"
#include "product.h"

namespace mednext::MEDNEXT_ISA {

// Where the voxels of a tile lie.
template <class T>
struct TilePlaces {
  const T* y[TILE];
  T* stream[TILE];
  int64_t count = 0;

  // Memory is slower than the products: what a tile reads is asked for while the one before is computed.
  MEDNEXT_INLINE void find(const FeedForward<T>& job, int64_t first, int64_t end) {
    count = end - first < TILE ? end - first : TILE;
    over_runs(first, first + count, job.h, job.w, [&](int64_t i, int64_t z, int64_t y_, int64_t x, int64_t run) {
      lay_out(job.y.at(z, y_, x), job.y.step, run, y + i);
      lay_out(job.stream.at(z, y_, x), job.stream.step, run, stream + i);
      ask_for(y[i], job.y.block, job.c_in, run);
      ask_for(stream[i], job.stream.block, job.c_out, run);
    });
  }

 private:
  // Every line of a run, block by block.
  static MEDNEXT_INLINE void ask_for(const T* at, int64_t block, int64_t channels, int64_t run) {
    constexpr int64_t LINE = 64 / sizeof(T);
    for (int64_t c = 0; c < channels; c += BLOCK, at += block)
      for (int64_t k = 0; k < run * BLOCK; k += LINE) prefetch(at + k);
  }
};

// The first `channels` of one voxel's panel of a result into the stream.
template <class T, int Thin>
MEDNEXT_INLINE void into_stream(const Lanes (&sums)[Thin], int64_t first, int64_t channels, bool add,
                                const View<T>& stream, T* voxel) {
  MEDNEXT_UNROLL
  for (int i = 0; i < Thin; ++i) {
    if (i * LANES >= channels) break;
    const int64_t c = first + i * LANES;
    T* const at = voxel + c / BLOCK * stream.block + c % BLOCK;
    put(at, add ? sums[i] + take(at) : sums[i]);
  }
}

// The product of `voxels` held in `x` into the stream.
template <class T>
MEDNEXT_INLINE void multiply_into(const typename Multiplier<T>::Held* x, int64_t rows, int64_t voxels,
                                  const Panels32& panels, int64_t c_out, bool add, const View<T>& stream,
                                  T* const* places) {
  typedef Multiplier<T> M;
  for (int64_t n = 0; n < c_out; n += M::RESULT_PANEL) {
    const int64_t channels = c_out - n < M::RESULT_PANEL ? c_out - n : M::RESULT_PANEL;
    over_products<M, M::THIN_ROWS, M::THIN>(x, rows, voxels, panels, n, [&](int64_t v, const Lanes (&sums)[M::THIN]) {
      into_stream(sums, n, channels, add, stream, places[v]);
    });
  }
}

template <class T>
inline int64_t float_scratch_bytes(int64_t c_in, int64_t hidden) {
  return TILE * (row_width<T>(c_in) + hidden) * static_cast<int64_t>(sizeof(typename Multiplier<T>::Held));
}

// Rows that only fill up what is multiplied together.
template <class Held>
MEDNEXT_INLINE void clear_rest(Held* taken, int64_t c_in, int64_t rows) {
  if (rows == c_in) return;
  for (int64_t i = 0; i < TILE; ++i)
    std::memset(taken + i * rows + c_in, 0, static_cast<size_t>(rows - c_in) * sizeof(Held));
}

template <class T>
inline void float_feed_forward(const FeedForward<T>& job, int64_t begin, int64_t end, uint8_t* scratch) {
  typedef Multiplier<T> M;
  const int64_t rows = row_width<T>(job.c_in);
  typename M::Held* const taken = reinterpret_cast<typename M::Held*>(scratch);
  typename M::Held* const hidden = taken + TILE * rows;
  clear_rest(taken, job.c_in, rows);
  M::begin();
  TilePlaces<T> both[2];
  both[0].find(job, begin, end);
  for (int64_t first = begin, turn = 0; first < end; first += TILE, turn = 1 - turn) {
    const TilePlaces<T>& at = both[turn];
    if (first + TILE < end) both[1 - turn].find(job, first + TILE, end);
    for (int64_t i = 0; i < at.count; ++i)
      for (int64_t c = 0; c < job.c_in; c += LANES)
        put(taken + i * rows + c, take(at.y[i] + c / BLOCK * job.y.block + c % BLOCK) * take(job.scale + c) +
                                      take(job.shift + c));
    for (int64_t n = 0; n < job.hidden; n += M::HIDDEN_PANEL)
      over_products<M, M::WIDE_ROWS, M::WIDE>(
          taken, rows, at.count, job.expand, n, [&](int64_t v, const Lanes (&sums)[M::WIDE]) {
            MEDNEXT_UNROLL
            for (int i = 0; i < M::WIDE; ++i) put(hidden + v * job.hidden + n + i * LANES, gelu<T>(sums[i]));
          });
    multiply_into(hidden, job.hidden, at.count, job.compress, job.c_out, job.add, job.stream, at.stream);
  }
  M::end();
}

template <class T>
inline void float_pointwise(const Pointwise<T>& job, int64_t begin, int64_t end, uint8_t* scratch) {
  typedef Multiplier<T> M;
  const int64_t rows = row_width<T>(job.c_in);
  typename M::Held* const taken = reinterpret_cast<typename M::Held*>(scratch);
  clear_rest(taken, job.c_in, rows);
  M::begin();
  for (int64_t first = begin; first < end; first += TILE) {
    const int64_t voxels = end - first < TILE ? end - first : TILE;
    T* places[TILE];
    over_voxels(first, first + voxels, job.h, job.w, [&](int64_t i, int64_t z, int64_t y, int64_t x) {
      const T* const from = job.x.at(z, y, x);
      places[i] = job.stream.at(z, y, x);
      for (int64_t c = 0; c < job.c_in; c += LANES)
        put(taken + i * rows + c, take(from + c / BLOCK * job.x.block + c % BLOCK));
    });
    multiply_into(taken, rows, voxels, job.panels, job.c_out, job.add, job.stream, places);
  }
  M::end();
}

}  // namespace mednext::MEDNEXT_ISA
