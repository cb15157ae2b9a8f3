// The feed-forward half of a block in INT8: norm, product, GELU out of a table, product, residual sum. The hidden
// tensor, two to eight times as wide as the block, stays in the cache.
#pragma once

#include "lookup.h"

namespace mednext::MEDNEXT_ISA {

// One voxel's panel of the hidden tensor: scaled and rounded to lines of the table, or where the registers hold the table,
// looked up at once.
#if defined(__AVX512VBMI__)
constexpr bool LATER = false;
MEDNEXT_INLINE void finish_hidden(const Sums (&sums)[COLUMNS], const float* scale, const float* bias,
                                  const uint8_t* table, uint8_t* to) {
  __m512i level[4];
  for (int c = 0; c < 4; ++c) {
    const __m512 value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[c]), _mm512_loadu_ps(scale + 16 * c),
                                         _mm512_loadu_ps(bias + 16 * c));
    level[c] = _mm512_cvtps_epi32(_mm512_min_ps(value, _mm512_set1_ps(127)));  // what is too large would wrap around
  }
  const __m512i line =
      _mm512_packs_epi16(_mm512_packs_epi32(level[0], level[1]), _mm512_packs_epi32(level[2], level[3]));
  // Lines 0..127 are those of the levels that are not negative.
  const __m512i positive = _mm512_permutex2var_epi8(_mm512_loadu_si512(table), line, _mm512_loadu_si512(table + 64));
  const __m512i negative =
      _mm512_permutex2var_epi8(_mm512_loadu_si512(table + 128), line, _mm512_loadu_si512(table + 192));
  _mm512_storeu_si512(to, _mm512_mask_blend_epi8(_mm512_movepi8_mask(line), positive, negative));
}
inline void look_up(const uint8_t*, const uint8_t*, int64_t, Held*) {}  // nothing is left
#else
constexpr bool LATER = true;
MEDNEXT_INLINE void finish_hidden(const Sums (&sums)[COLUMNS], const float* scale, const float* bias, const uint8_t*,
                                  uint8_t* to) {
  for (int c = 0; c < PANEL; c += BLOCK)
    store_signed(to + c, scaled(block_of(sums, c / BLOCK), load16(scale + c), load16(bias + c)));
}
#endif

// The first `channels`, whole blocks, of one voxel's panel of a result: into the stream, and its copy.
MEDNEXT_INLINE void finish_stream(const Sums (&sums)[NARROW], const Scales& scales, int64_t first, int64_t channels,
                                  bool add, const View<uint16_t>& stream, uint16_t* to, const Copy8& copy,
                                  uint8_t* beside) {
  MEDNEXT_UNROLL
  for (int b = 0; b < OUT_PANEL / BLOCK; ++b) {
    if (b * BLOCK >= channels) break;
    const int64_t c = first + b * BLOCK;
    uint16_t* const at = to + c / BLOCK * stream.block;
    Sixteen y = scaled(block_of(sums, b), load16(scales.scale + c), load16(scales.bias + c));
    if (add) y = y + wide(at);
    store_bf16(at, y);
    if (beside) store_int8(beside + c / BLOCK * copy.to.block, y * all(copy.levels));
  }
}

inline int64_t scratch_bytes(int64_t c_in, int64_t hidden) {
  const int64_t held = TILE * (c_in + hidden) + (LATER ? BEYOND_LINES : 0);
  return held * static_cast<int64_t>(sizeof(Held)) + (LATER ? TILE * hidden + BEYOND_LINES : 0);
}

// Where the voxels of a tile lie.
struct Places {
  const int16_t* y[TILE];
  uint16_t* stream[TILE];
  uint8_t* copy[TILE];
  int64_t count = 0;

  // Memory is slower than the products: what a tile reads is asked for while the one before is computed.
  MEDNEXT_INLINE void find(const FeedForward8& job, int64_t first, int64_t end) {
    count = end - first < TILE ? end - first : TILE;
    over_voxels(first, first + count, job.h, job.w, [&](int64_t i, int64_t z, int64_t y_, int64_t x) {
      y[i] = job.y.at(z, y_, x);
      stream[i] = job.stream.at(z, y_, x);
      copy[i] = job.copy.to.data ? job.copy.to.at(z, y_, x) : nullptr;
      for (int64_t b = 0; b < job.c_in / BLOCK; ++b) prefetch(y[i] + b * job.y.block);
      for (int64_t b = 0; b < job.c_out / BLOCK; ++b) prefetch(stream[i] + b * job.stream.block);
    });
  }
};

inline void feed_forward(const FeedForward8& job, int64_t begin, int64_t end, uint8_t* scratch) {
  Held* const taken = reinterpret_cast<Held*>(scratch);
  Held* const kept = taken + TILE * job.c_in;
  uint8_t* const lines = reinterpret_cast<uint8_t*>(kept + (LATER ? TILE * job.hidden + BEYOND_LINES : 0));
  Places both[2];
  both[0].find(job, begin, end);
  for (int64_t first = begin, turn = 0; first < end; first += TILE, turn = 1 - turn) {
    const Places& at = both[turn];
    if (first + TILE < end) both[1 - turn].find(job, first + TILE, end);
    for (int64_t i = 0; i < at.count; ++i)
      for (int64_t c = 0; c < job.c_in; c += BLOCK)
        store_int8(taken + i * job.c_in + c, scaled(wide(at.y[i] + c / BLOCK * job.y.block), load16(job.norm.scale + c),
                                                    load16(job.norm.bias + c)));
    for (int64_t n = 0; n < job.hidden; n += PANEL)
      over_rows<COLUMNS>(taken, job.c_in, at.count, job.expand, n, [&](int64_t v, const Sums (&sums)[COLUMNS]) {
        finish_hidden(sums, job.expand_scales.scale + n, job.expand_scales.bias + n, job.table,
                      lines + v * job.hidden + n);
      });
    look_up(job.table, lines, at.count * job.hidden, kept);
    for (int64_t n = 0; n < job.c_out; n += OUT_PANEL) {
      const int64_t channels = job.c_out - n < OUT_PANEL ? job.c_out - n : OUT_PANEL;
      over_rows<NARROW>(kept, job.hidden, at.count, job.compress, n, [&](int64_t v, const Sums (&sums)[NARROW]) {
        finish_stream(sums, job.compress_scales, n, channels, job.add, job.stream, at.stream[v], job.copy, at.copy[v]);
      });
    }
  }
}

// A block of the copy as products take it.
inline void hold(const uint8_t* from, uint8_t* to) { std::memcpy(to, from, BLOCK); }
inline void hold(const uint8_t* from, int16_t* to) {
  for (int64_t k = 0; k < BLOCK; ++k) to[k] = from[k];
}

inline void pointwise(const Pointwise8& job, int64_t begin, int64_t end, uint8_t* scratch) {
  Held* const taken = reinterpret_cast<Held*>(scratch);
  for (int64_t first = begin; first < end; first += TILE) {
    const int64_t voxels = end - first < TILE ? end - first : TILE;
    uint16_t* stream[TILE];
    over_voxels(first, first + voxels, job.h, job.w, [&](int64_t i, int64_t z, int64_t y, int64_t x) {
      const uint8_t* const from = job.x.at(z, y, x);
      stream[i] = job.stream.at(z, y, x);
      for (int64_t c = 0; c < job.c_in; c += BLOCK)
        hold(from + c / BLOCK * job.x.block, taken + i * job.c_in + c);
    });
    for (int64_t n = 0; n < job.c_out; n += OUT_PANEL) {
      const int64_t channels = job.c_out - n < OUT_PANEL ? job.c_out - n : OUT_PANEL;
      over_rows<NARROW>(taken, job.c_in, voxels, job.panels, n, [&](int64_t v, const Sums (&sums)[NARROW]) {
        finish_stream(sums, job.scales, n, channels, job.add, job.stream, stream[v], {}, nullptr);
      });
    }
  }
}

}  // namespace mednext::MEDNEXT_ISA
