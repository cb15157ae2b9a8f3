// The head in float32: its numbers are the logits. Lanes are voxels, since classes are few.
#pragma once

#include "numbers.h"

namespace mednext::MEDNEXT_ISA {

// A block of channels of sixteen voxels, which lie at `from[v] + apart`: to [BLOCK channels, 16 voxels].
MEDNEXT_INLINE void turn(const uint16_t* const* from, int64_t apart, float* to) {
#if defined(__AVX512BW__)
  // Two channels go together until the end. Register i holds voxels i and 8 + i, in its two halves.
  __m512i rows[8], pairs[8], fours[8];
  const auto half = [&](int v) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from[v] + apart)); };
  MEDNEXT_UNROLL
  for (int i = 0; i < 8; ++i) rows[i] = _mm512_inserti64x4(_mm512_castsi256_si512(half(i)), half(8 + i), 1);
  MEDNEXT_UNROLL
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  // fours[4 * h + j]: channel pairs j and 4 + j, in the quarters of a half, of voxels 4 * h to 4 * h + 3.
  MEDNEXT_UNROLL
  for (int h = 0; h < 2; ++h) {
    MEDNEXT_UNROLL
    for (int j = 0; j < 2; ++j) {
      fours[4 * h + 2 * j] = _mm512_unpacklo_epi64(pairs[4 * h + j], pairs[4 * h + 2 + j]);
      fours[4 * h + 2 * j + 1] = _mm512_unpackhi_epi64(pairs[4 * h + j], pairs[4 * h + 2 + j]);
    }
  }
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
  MEDNEXT_UNROLL
  for (int j = 0; j < 8; ++j) {
    const __m512i pair = _mm512_permutex2var_epi64(fours[j % 4], j < 4 ? low : high, fours[4 + j % 4]);
    _mm512_storeu_si512(to + 2 * j * BLOCK, _mm512_slli_epi32(pair, 16));
    _mm512_storeu_si512(to + (2 * j + 1) * BLOCK, _mm512_and_si512(pair, _mm512_set1_epi32(~0xFFFF)));
  }
#else
  for (int v = 0; v < BLOCK; ++v) {
    float channels[BLOCK];
    store16(channels, wide(from[v] + apart));
    for (int c = 0; c < BLOCK; ++c) to[c * BLOCK + v] = channels[c];
  }
#endif
}

// Logits of `count` voxels, of sixteen that `streams` gives.
MEDNEXT_INLINE void head_of_sixteen(const Head& job, int64_t first, int64_t count, const uint16_t* const* streams,
                                    float* channels) {
  constexpr int TOGETHER = 4;
  for (int64_t b = 0; b < job.c_in / BLOCK; ++b) turn(streams, b * job.stream.block, channels + b * BLOCK * BLOCK);
  for (int64_t k = 0; k < job.classes; k += TOGETHER) {
    const float* const weight = job.weight + k / BLOCK * job.c_in * BLOCK + k % BLOCK;
    Sixteen sums[TOGETHER];
    MEDNEXT_UNROLL
    for (int i = 0; i < TOGETHER; ++i) sums[i] = all(job.bias[k + i]);
    for (int64_t c = 0; c < job.c_in; ++c) {
      const Sixteen x = load16(channels + c * BLOCK);
      MEDNEXT_UNROLL
      for (int i = 0; i < TOGETHER; ++i) sums[i] = scaled(x, all(weight[c * BLOCK + i]), sums[i]);
    }
    for (int64_t i = 0; i < TOGETHER && k + i < job.classes; ++i) {
      float logits[BLOCK];
      store16(logits, sums[i]);
      std::memcpy(job.y + (k + i) * job.voxels + first, logits, sizeof(float) * static_cast<size_t>(count));
    }
  }
}

// `scratch` holds the channels of sixteen voxels in float32.
inline void head(const Head& job, int64_t begin, int64_t end, uint8_t* scratch) {
  constexpr int64_t AHEAD = 2 * TILE;
  for (int64_t first = begin; first < end; first += BLOCK) {
    const int64_t count = end - first < BLOCK ? end - first : BLOCK;
    const uint16_t* streams[BLOCK];
    over_runs(first, first + count, job.h, job.w, [&](int64_t i, int64_t z, int64_t y, int64_t x, int64_t run) {
      lay_out(job.stream.at(z, y, x), job.stream.step, run, streams + i);
      for (int64_t b = 0; b < job.c_in / BLOCK; ++b)
        for (int64_t k = 0; k < run; k += 2)  // a line holds two voxels
          prefetch_later(streams[i] + b * job.stream.block + (AHEAD + k) * BLOCK);
    });
    for (int64_t i = count; i < BLOCK; ++i) streams[i] = streams[0];
    head_of_sixteen(job, first, count, streams, reinterpret_cast<float*>(scratch));
  }
}

}  // namespace mednext::MEDNEXT_ISA
