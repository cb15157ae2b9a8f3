// The voxel-wise half of a block, y = w2 gelu(w1 norm(a) + b1) + b2 + residual, with its hidden columns in registers.
//
// A warp takes ROWS voxels. Their inputs, normalised as they are read, stay in registers as first factors of
// tensor-core products, and so do the sums of their outputs, which start from b2 + residual. For 32 hidden columns at
// a time, product 1 gives the columns' sums; GELU and rounding make them the first factor of product 2, where they
// already lie as it wants them; product 2 adds to the outputs. Device memory is read and written once, 16 bytes a
// lane. Shared memory holds weights alone, and warps meet only if not all weights fit.
//
// Counts for one voxel, C channels in and out and H hidden columns, in cycles of a multiprocessor. They are made from
// data sheets and machine code, not measured. H200 at 1.76 GHz: a cycle moves 20.7 bytes of device memory and 128 of
// shared memory and issues 4 instructions; a product of 2048 FMA takes 1 at best, 1.6 if mma.sync reaches, as is said,
// 62 % of that.
//                                                            C 32, H 64   C 64, H 256   C 128, H 512
//   device memory   6 C bytes                                    9.3          18.5           37
//   instructions    GELU, rounding   15.5 H / 32                 7.8          31             62
//                   all others       5 C / 32, products, reads   2.6           8             30
//   tensor cores    C H / 1024 products                          3.2          26            102
//   shared memory   512 bytes for 2 MT products                  2            16            128
// So C 32 is near the bound of memory at H 64 and bound by GELU beyond; C 64 by GELU; C 128 by shared memory: two tiles
// a warp, which would halve that, need more than 255 registers.
#pragma once

#include "mednext/ffn_weights.h"
#include "mednext/gelu.h"
#include "mednext/mma.h"

namespace mednext {

template <class T, int C, int OUT>
struct Ffn {
  using Args = FfnArgs;
  using Chunk = FfnChunk<T, C, OUT>;
  using Lane = typename Chunk::Lane;
  // Tiles of 16 voxels in a warp: each read of weights serves all of them.
  static constexpr int MT = C / 4 + OUT / 2 <= 48 ? 2 : 1, ROWS = 16 * MT;
  // Registers of inputs and sums; the rest of a warp's work takes some 75 more. So many warps as leave every thread
  // 128, 168 or 255.
  static constexpr int HELD = MT * (C / 4 + OUT / 2);
  static constexpr bool NARROW = HELD <= 48, WIDE = HELD > 80 || OUT == 128;
  static constexpr int MIN_BLOCKS = NARROW ? 2 : 1, THREADS = NARROW || WIDE ? 256 : 384, WARPS = THREADS / 32;
  static constexpr int VECTORS = (2 * C + OUT) * 4;  // scale, shift, b2
  // 8.6, 8.9 and 12.0 have 100 KiB a multiprocessor, of which the system takes 1 KiB for each block.
  static constexpr int BUDGET = (100 / MIN_BLOCKS - 1) * 1024;
  static constexpr int SLOTS = (BUDGET - VECTORS) / Chunk::BYTES, SHARED = VECTORS + SLOTS * Chunk::BYTES;

  using Inputs = uint32_t[MT][C / 16][4];
  using Sums = float[MT][OUT / 8][4];
  using Hidden = uint32_t[MT][2][4];

  // The voxels of this lane are `first` + 8 i; those beyond the last are read as the last and never written.
  MEDNEXT_DEVICE static int clamped(const Args& a, int voxel) { return voxel < a.voxels ? voxel : a.voxels - 1; }

  MEDNEXT_DEVICE static void normalise(const Args& a, float* scale, float* shift) {
    for (int c = thread_index(); c < C; c += THREADS) {
      const int at = block_z() * C + c;
      const float s = (a.gamma ? a.gamma[c] : 1.0f) / sqrtf(a.moment[at] / static_cast<float>(a.voxels) + a.eps);
      scale[c] = s;
      shift[c] = fmaf(-a.mean[at], s, a.beta ? a.beta[c] : 0.0f);
    }
  }

  MEDNEXT_DEVICE static void read_floats(const float* from, float (&values)[8]) {
    const Piece low = read_piece(from), high = read_piece(from + 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = bits::as_float(low.words[i]), values[4 + i] = bits::as_float(high.words[i]);
  }

  MEDNEXT_DEVICE static void read_inputs(const Args& a, const float* scale, const float* shift, int first, int t,
                                         Inputs& inputs) {
    const char* base = static_cast<const char*>(a.a);
#pragma unroll
    for (int q = 0; q < C / 32; ++q) {
      Piece pieces[2 * MT];
#pragma unroll
      for (int i = 0; i < 2 * MT; ++i) {
        const int64_t voxel = static_cast<int64_t>(block_z()) * a.voxels + clamped(a, first + 8 * i);
        pieces[i] = read_piece(base + voxel * (C * 2) + q * 64 + t * 16);
      }
      float s[8], b[8];
      read_floats(scale + 32 * q + 8 * t, s);
      read_floats(shift + 32 * q + 8 * t, b);
#pragma unroll
      for (int i = 0; i < 2 * MT; ++i) {
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          float pair[2];
          T::unpack(pieces[i].words[w], pair);
          pair[0] = fmaf(pair[0], s[2 * w], b[2 * w]);
          pair[1] = fmaf(pair[1], s[2 * w + 1], b[2 * w + 1]);
          inputs[i / 2][2 * q + w / 2][w % 2 * 2 + i % 2] = T::pack(pair);
        }
      }
    }
  }

  MEDNEXT_DEVICE static void start_sums(const Args& a, const float* b2, int first, int t, Sums& sums) {
    const char* base = static_cast<const char*>(a.residual);
#pragma unroll
    for (int i = 0; i < 2 * MT; ++i) {
      const int64_t offset = a.offset(block_z(), clamped(a, first + 8 * i));
#pragma unroll
      for (int p = 0; p < OUT / 32; ++p) {
        float start[8];
        read_floats(b2 + 32 * p + 8 * t, start);
        if (base) {
          const Piece piece = read_piece(base + offset * 2 + p * 64 + t * 16);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            float pair[2];
            T::unpack(piece.words[j], pair);
            start[2 * j] += pair[0], start[2 * j + 1] += pair[1];
          }
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sums[i / 2][4 * p + j][i % 2 * 2] = start[2 * j];
          sums[i / 2][4 * p + j][i % 2 * 2 + 1] = start[2 * j + 1];
        }
      }
    }
  }

  // gelu(w1 inputs + b1) of 32 columns, rounded.
  MEDNEXT_DEVICE static void expand(const char* chunk, const Lane& lane, const Inputs& inputs, Hidden& hidden) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const Piece bias = lane.b1(chunk, s, e);
        float sums[MT][4];
#pragma unroll
        for (int m = 0; m < MT; ++m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[m][i] = bits::as_float(bias.words[i]);
        }
#pragma unroll
        for (int q = 0; q < C / 32; ++q) {
          const Piece w = lane.w1(chunk, s, e, q);
#pragma unroll
          for (int m = 0; m < MT; ++m) {
            mma<T>(sums[m], inputs[m][2 * q], w.words[0], w.words[1], sums[m]);
            mma<T>(sums[m], inputs[m][2 * q + 1], w.words[2], w.words[3], sums[m]);
          }
        }
#pragma unroll
        for (int m = 0; m < MT; ++m) {
          hidden[m][s][2 * e] = T::pack({gelu(sums[m][0]), gelu(sums[m][1])});
          hidden[m][s][2 * e + 1] = T::pack({gelu(sums[m][2]), gelu(sums[m][3])});
        }
      }
    }
  }

  // sums += w2 hidden.
  MEDNEXT_DEVICE static void compress(const char* chunk, const Lane& lane, const Hidden& hidden, Sums& sums) {
#pragma unroll
    for (int j = 0; j < OUT / 8; ++j) {
      const Piece w = lane.w2(chunk, j);
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        mma<T>(sums[m][j], hidden[m][0], w.words[0], w.words[1], sums[m][j]);
        mma<T>(sums[m][j], hidden[m][1], w.words[2], w.words[3], sums[m][j]);
      }
    }
  }

  MEDNEXT_DEVICE static void write(const Args& a, int first, int t, const Sums& sums) {
    char* base = static_cast<char*>(a.y);
#pragma unroll
    for (int i = 0; i < 2 * MT; ++i) {
      const int voxel = first + 8 * i;
      if (voxel >= a.voxels) break;
      const int64_t offset = a.offset(block_z(), voxel);
#pragma unroll
      for (int p = 0; p < OUT / 32; ++p) {
        Piece piece;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float(&sum)[4] = sums[i / 2][4 * p + j];
          piece.words[j] = T::pack({sum[i % 2 * 2], sum[i % 2 * 2 + 1]});
        }
        write_piece(base + offset * 2 + p * 64 + t * 16, piece);
      }
    }
  }

  // Grid: (blocks of a sample, 1, n). Tiles of ROWS voxels go round the blocks, then round the warps of a block.
  MEDNEXT_DEVICE static void run(const Args& a, char* shared) {
    float* scale = reinterpret_cast<float*>(shared);
    float* shift = scale + C;
    float* b2 = shift + C;
    const int warp = thread_index() / 32, g = thread_index() % 32 / 4, t = thread_index() % 4;
    const Lane lane(thread_index() % 32);
    const int tiles = (a.voxels + ROWS - 1) / ROWS, mine = (tiles - block_x() + blocks_x() - 1) / blocks_x();

    normalise(a, scale, shift);
    for (int c = thread_index(); c < OUT; c += THREADS) b2[c] = a.b2 ? a.b2[c] : 0.0f;
    FfnRing<Chunk, THREADS, SLOTS> weights(a, shared + VECTORS);
    for (int turn = 0; turn < mine; turn += WARPS) {
      const bool last = turn + WARPS >= mine;
      if (turn + warp >= mine) {  // the others still need this warp's copies
        for (int i = 0; i < weights.chunks() && !weights.stays(); ++i) weights.chunk(i, last);
        continue;
      }
      int first = ((turn + warp) * blocks_x() + block_x()) * ROWS + g;
      Inputs inputs;
      Sums sums;
      start_sums(a, b2, first, t, sums);
      read_inputs(a, scale, shift, first, t, inputs);
      for (int i = 0; i < weights.chunks(); ++i) {
        const char* chunk = weights.chunk(i, last);
        Hidden hidden;
        expand(chunk, lane, inputs, hidden);
        compress(chunk, lane, hidden, sums);
      }
      forget(first);
      write(a, first, t, sums);
      warp_order();  // lanes beyond the last voxel wait for the others: products need all of them
    }
  }
};

}  // namespace mednext
