// The feed-forward half of a block in INT8: norm, product, GELU out of a table, product, residual sum. The hidden
// tensor, two to eight times as wide as the block, stays in the cache.
#pragma once

#include <algorithm>

#include "lookup.h"
#include "norm_of_tile.h"

namespace mednext::MEDNEXT_ISA {

// Takes one voxel's panel of the hidden tensor: scaled and rounded to lines of the table, or where the registers hold
// the table, looked up at once.
#if defined(__AVX512VBMI__)
constexpr bool LATER = false;
template <bool Lifted>
struct Finish {
  __m512 scale[COLUMNS], bias[COLUMNS];
  __m512i table[4];

  MEDNEXT_INLINE Finish(const FeedForward8& job, int64_t first) {
    MEDNEXT_UNROLL
    for (int c = 0; c < COLUMNS; ++c) {
      scale[c] = _mm512_loadu_ps(job.expand_scales.scale + first + SUMS * c);
      bias[c] = _mm512_loadu_ps(job.expand_scales.bias + first + SUMS * c);
    }
    MEDNEXT_UNROLL
    for (int i = 0; i < 4; ++i) table[i] = _mm512_loadu_si512(job.table + 64 * i);
  }
  MEDNEXT_INLINE void operator()(const Sums (&sums)[COLUMNS], uint8_t* to) const {
    __m512i level[4];
    MEDNEXT_UNROLL
    for (int c = 0; c < 4; ++c) {
      __m512 value = _mm512_fmadd_ps(float_of<Lifted>(sums[c]), scale[c], bias[c]);
      // What is too large would wrap around; of lifted sums nothing is.
      if (!Lifted) value = _mm512_min_ps(value, _mm512_set1_ps(127));
      level[c] = _mm512_cvtps_epi32(value);
    }
    const __m512i line =
        _mm512_packs_epi16(_mm512_packs_epi32(level[0], level[1]), _mm512_packs_epi32(level[2], level[3]));
    // Lines 0..127 are those of the levels that are not negative.
    const __m512i positive = _mm512_permutex2var_epi8(table[0], line, table[1]);
    const __m512i negative = _mm512_permutex2var_epi8(table[2], line, table[3]);
    _mm512_storeu_si512(to, _mm512_mask_blend_epi8(_mm512_movepi8_mask(line), positive, negative));
  }
};
inline void look_up(const uint8_t*, const uint8_t*, int64_t, Held*) {}  // nothing is left
#else
constexpr bool LATER = true;
template <bool Lifted>
struct Finish {
  const float *scale, *bias;

  MEDNEXT_INLINE Finish(const FeedForward8& job, int64_t first)
      : scale(job.expand_scales.scale + first), bias(job.expand_scales.bias + first) {}
  MEDNEXT_INLINE void operator()(const Sums (&sums)[COLUMNS], uint8_t* to) const {
    for (int c = 0; c < PANEL; c += BLOCK)
      store_signed(to + c, scaled(block_of<Lifted>(sums, c / BLOCK), load16(scale + c), load16(bias + c)));
  }
};
#endif

// Takes the first `channels`, whole blocks, of one voxel's panel of a result: into the stream, and its copy.
template <bool Lifted>
struct IntoStream {
  Sixteen scale[OUT_PANEL / BLOCK], bias[OUT_PANEL / BLOCK], levels;
  int64_t channels, apart, apart_copy, stream_block, copy_block;
  bool add;

  MEDNEXT_INLINE IntoStream(const IntoStream8& job, int64_t first)
      : levels(all(job.copy.levels)),
        channels(job.c_out - first < OUT_PANEL ? job.c_out - first : OUT_PANEL),
        apart(first / BLOCK * job.stream.block),
        apart_copy(first / BLOCK * job.copy.to.block),
        stream_block(job.stream.block),
        copy_block(job.copy.to.block),
        add(job.add) {
    MEDNEXT_UNROLL
    for (int b = 0; b < OUT_PANEL / BLOCK; ++b) {
      scale[b] = load16(job.scales.scale + first + b * BLOCK);
      bias[b] = load16(job.scales.bias + first + b * BLOCK);
    }
  }
  MEDNEXT_INLINE void operator()(const Sums (&sums)[NARROW], uint16_t* to, uint8_t* beside) const {
    MEDNEXT_UNROLL
    for (int b = 0; b < OUT_PANEL / BLOCK; ++b) {
      if (b * BLOCK >= channels) break;
      uint16_t* const at = to + apart + b * stream_block;
      Sixteen y = scaled(block_of<Lifted>(sums, b), scale[b], bias[b]);
      if (add) y = y + wide(at);
      store_bf16(at, y);
      if (beside) store_int8(beside + apart_copy + b * copy_block, y * levels);
    }
  }
};

// The product with `voxels` of x, `rows` values each.
template <bool Lifted>
MEDNEXT_INLINE void into_stream(const IntoStream8& job, const Held* x, int64_t rows, int64_t voxels,
                                uint16_t* const* stream, uint8_t* const* copy) {
  for (int64_t n = 0; n < job.c_out; n += OUT_PANEL) {
    const IntoStream<Lifted> finish(job, n);
    over_rows<NARROW>(x, rows, voxels, job.panels, n,
                      [&](int64_t v, const Sums (&sums)[NARROW]) { finish(sums, stream[v], copy[v]); });
  }
}
MEDNEXT_INLINE void into_stream(const IntoStream8& job, const Held* x, int64_t rows, int64_t voxels,
                                uint16_t* const* stream, uint8_t* const* copy) {
  if (job.panels.lifted)
    into_stream<true>(job, x, rows, voxels, stream, copy);
  else
    into_stream<false>(job, x, rows, voxels, stream, copy);
}

inline int64_t scratch_bytes(int64_t c_in, int64_t hidden) {
  const int64_t held = TILE * (2 * row_width(c_in) + hidden) + (LATER ? BEYOND_LINES : 0);
  return held * static_cast<int64_t>(sizeof(Held)) + (LATER ? TILE * hidden + BEYOND_LINES : 0);
}

constexpr int64_t AHEAD = 3;  // tiles that are asked for before they are needed

// Where the voxels of a tile lie.
struct Places {
  const int16_t* y[TILE];
  uint16_t* stream[TILE];
  uint8_t* copy[TILE];
  int64_t count = 0;

  MEDNEXT_INLINE void find(const FeedForward8& job, int64_t first, int64_t end) {
    const View<uint16_t>& to = job.compress.stream;
    const View<uint8_t>& beside = job.compress.copy.to;
    count = end - first < TILE ? end - first : TILE;
    over_runs(first, first + count, job.h, job.w, [&](int64_t i, int64_t z, int64_t y_, int64_t x, int64_t run) {
      lay_out(job.y.at(z, y_, x), job.y.step, run, y + i);
      lay_out(to.at(z, y_, x), to.step, run, stream + i);
      if (beside.data) lay_out(beside.at(z, y_, x), beside.step, run, copy + i);
    });
    if (count % 2 != 0) y[count] = y[count - 1];  // they are taken two by two
    if (!beside.data) std::fill_n(copy, count, nullptr);
  }

  // Asks for part `turn` of `turns` of a voxel's channels. A line holds two voxels, of the copy four.
  MEDNEXT_INLINE void ask_for(const FeedForward8& job, int64_t v, int64_t turn, int64_t turns) const {
    if (v % 2 != 0) return;
    const int64_t in = job.c_in / BLOCK, out = job.compress.c_out / BLOCK;
    for (int64_t b = in * turn / turns; b < in * (turn + 1) / turns; ++b) prefetch_later(y[v] + b * job.y.block);
    for (int64_t b = out * turn / turns; b < out * (turn + 1) / turns; ++b) {
      prefetch_later(stream[v] + b * job.compress.stream.block);
      if (copy[v] && v % 4 == 0) prefetch_later(copy[v] + b * job.compress.copy.to.block);
    }
  }
};

// The normalised voxels of a tile in INT8.
MEDNEXT_INLINE void take_normed(const FeedForward8& job, const Places& at, int64_t rows, Held* to) {
  for (int64_t b = 0; b < job.c_in / BLOCK; ++b) {
    keep_tiles_awake();
    take_normed(job.norm, b, at.y, b * job.y.block, at.count, rows, to);
  }
}

// The hidden tensor of a tile, up to `look_up`. What `later` needs is asked for.
template <bool Lifted>
MEDNEXT_INLINE void expand(const FeedForward8& job, const Held* x, int64_t rows, int64_t voxels, const Places& later,
                           uint8_t* lines) {
  for (int64_t n = 0; n < job.hidden; n += PANEL) {
    const Finish<Lifted> finish(job, n);
    over_rows<COLUMNS>(x, rows, voxels, job.expand, n, [&](int64_t v, const Sums (&sums)[COLUMNS]) {
      finish(sums, lines + v * job.hidden + n);
      if (v < later.count) later.ask_for(job, v, n / PANEL, job.hidden / PANEL);
    });
  }
}

inline void feed_forward(const FeedForward8& job, int64_t begin, int64_t end, uint8_t* scratch) {
  const int64_t rows = row_width(job.c_in);
  Held* const taken[2] = {reinterpret_cast<Held*>(scratch), reinterpret_cast<Held*>(scratch) + TILE * rows};
  Held* const kept = taken[1] + TILE * rows;
  uint8_t* const lines = reinterpret_cast<uint8_t*>(kept + (LATER ? TILE * job.hidden + BEYOND_LINES : 0));
  begin_tiles();
  Places places[AHEAD + 1];
  for (int64_t i = 0; i < AHEAD && begin + i * TILE < end; ++i) {
    places[i].find(job, begin + i * TILE, end);
    for (int64_t v = 0; v < places[i].count; ++v) places[i].ask_for(job, v, 0, 1);
  }
  take_normed(job, places[0], rows, taken[0]);
  for (int64_t first = begin, turn = 0; first < end; first += TILE, ++turn) {
    const Places& at = places[turn % (AHEAD + 1)];
    const Places& next = places[(turn + 1) % (AHEAD + 1)];
    Places& later = places[(turn + AHEAD) % (AHEAD + 1)];
    const Held* const x = taken[turn % 2];
    later.count = 0;
    if (first + AHEAD * TILE < end) later.find(job, first + AHEAD * TILE, end);
    if (job.expand.lifted)
      expand<true>(job, x, rows, at.count, later, lines);
    else
      expand<false>(job, x, rows, at.count, later, lines);
    look_up(job.table, lines, at.count * job.hidden, kept);
    // Ahead of what is stored into the stream: what a product reads must have left the queue of stores, and waits there
    // for all that is before it.
    if (first + TILE < end) take_normed(job, next, rows, taken[1 - turn % 2]);
    into_stream(job.compress, kept, job.hidden, at.count, at.stream, at.copy);
  }
  end_tiles();
}

// A block of the copy as products take it.
inline void hold(const uint8_t* from, uint8_t* to) { std::memcpy(to, from, BLOCK); }
inline void hold(const uint8_t* from, int16_t* to) {
  for (int64_t k = 0; k < BLOCK; ++k) to[k] = from[k];
}

inline void pointwise(const Pointwise8& job, int64_t begin, int64_t end, uint8_t* scratch) {
  const int64_t rows = row_width(job.c_in);
  Held* const taken = reinterpret_cast<Held*>(scratch);
  begin_tiles();
  for (int64_t first = begin; first < end; first += TILE) {
    const int64_t voxels = end - first < TILE ? end - first : TILE;
    uint16_t* stream[TILE];
    uint8_t* copy[TILE] = {};
    over_voxels(first, first + voxels, job.h, job.w, [&](int64_t i, int64_t z, int64_t y, int64_t x) {
      const uint8_t* const from = job.x.at(z, y, x);
      stream[i] = job.result.stream.at(z, y, x);
      for (int64_t c = 0; c < job.c_in; c += BLOCK)
        hold(from + c / BLOCK * job.x.block, taken + i * rows + c);
    });
    into_stream(job.result, taken, rows, voxels, stream, copy);
  }
  end_tiles();
}

}  // namespace mednext::MEDNEXT_ISA
