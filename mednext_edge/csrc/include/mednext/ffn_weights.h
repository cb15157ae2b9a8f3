// The weights of the feed-forward kernel in shared memory, 32 hidden columns at a time.
#pragma once

#include "mednext/ffn_args.h"

namespace mednext {

constexpr int HIDDEN = 32;  // columns of a chunk

// A chunk, as it lies in shared memory:
//   w1   [32 hidden][C]; of odd rows, the 16-byte pieces change places with those 64 bytes away, so that the two rows
//        that eight lanes read at once lie in different banks (rows of 64 bytes do so by themselves)
//   w2   [OUT][32 hidden]
//   b1   [4 pairs][4 lanes][2 columns, twice]: what a lane starts a product from
//
// A lane reads 16 neighbouring bytes of a row of w1 or w2 and has its second factors of two products, holds 8
// neighbouring channels of its voxels, and nothing is permuted on the way: which channel, hidden column or output
// stands for which column of a factor is free as long as both factors agree. With g and t of mma.h and i, e, s of 0, 1:
//   a sum over 32 channels or hidden columns takes two products, s; column 2t + i + 8e is number 8t + 4s + 2e + i of 32
//   product 1 of pair (s, e): column g is hidden 8 (g / 2) + g % 2 + 4s + 2e, so the sum 2t + i is 8t + 4s + 2e + i
//   product 2 of tile j: column g is output 8 (g / 2) + g % 2 + 2j, so the sum 2t + i is 8t + 2j + i
template <class T, int C, int OUT>
struct FfnChunk {
  static constexpr int W1 = HIDDEN * C * 2, W2 = OUT * HIDDEN * 2, B1 = 2 * HIDDEN * 4, BYTES = W1 + W2 + B1;

  // Byte of channels 32 q + 8 t .. of a row of w1.
  MEDNEXT_DEVICE static int w1_byte(int row, int q, int t) {
    const int swap = C == 32 ? 0 : row % 2;
    return row * C * 2 + (q ^ swap) * 64 + t * 16;
  }

  MEDNEXT_DEVICE static int w2_byte(int row, int t) { return W1 + row * 64 + t * 16; }

  // Where a lane reads: all else is known when the kernel is compiled.
  class Lane {
   public:
    MEDNEXT_DEVICE explicit Lane(int lane) {
      const int g = lane / 4, t = lane % 4, row = g / 2 * 8 + g % 2;
      w1_[0] = w1_byte(row, 0, t), w1_[1] = w1_byte(row, 1, t), w2_ = w2_byte(row, t), b1_ = W1 + W2 + t * 16;
    }

    MEDNEXT_DEVICE Piece w1(const char* chunk, int s, int e, int q) const {
      return read_piece(chunk + w1_[q % 2] + (4 * s + 2 * e) * C * 2 + q / 2 * 128);
    }
    MEDNEXT_DEVICE Piece w2(const char* chunk, int j) const {
      return read_piece(chunk + w2_ + (j / 4 * 32 + j % 4 * 2) * 64);
    }
    MEDNEXT_DEVICE Piece b1(const char* chunk, int s, int e) const {
      return read_piece(chunk + b1_ + (2 * s + e) * 64);
    }

   private:
    int w1_[2], w2_, b1_;
  };

  // Starts the copies of chunk `index`.
  template <int THREADS>
  MEDNEXT_DEVICE static void start(const FfnArgs& a, int index, char* chunk) {
    constexpr int PIECES1 = W1 / 16, PIECES2 = W2 / 16;
    const char* w1 = static_cast<const char*>(a.w1) + static_cast<int64_t>(index) * W1;
    const char* w2 = static_cast<const char*>(a.w2) + static_cast<int64_t>(index) * HIDDEN * 2;
    int thread = thread_index();
    forget(thread);
#pragma unroll 1
    for (int i = thread; i < PIECES1; i += THREADS) {
      const int row = i / (C / 8), piece = i % (C / 8);
      copy_async(chunk + w1_byte(row, piece / 4, piece % 4), w1 + i * 16, true);
    }
#pragma unroll 1
    for (int i = thread; i < PIECES2; i += THREADS) {
      copy_async(chunk + w2_byte(i / 4, i % 4), w2 + static_cast<int64_t>(i / 4) * a.hidden * 2 + i % 4 * 16, true);
    }
#pragma unroll 1
    for (int i = thread; i < 2 * HIDDEN; i += THREADS) {
      const int pair = i / 16, t = i / 4 % 4, column = index * HIDDEN + 8 * t + 2 * pair + i % 2;
      const void* from = a.b1 ? static_cast<const void*>(a.b1 + column) : a.w1;
      copy_word_async(chunk + W1 + W2 + i * 4, from, a.b1 != nullptr);
    }
  }
};

// The chunks of all hidden columns, over and over: all of them stay if they fit, else SLOTS of them at a time.
template <class Chunk, int THREADS, int SLOTS>
class FfnRing {
  static_assert(SLOTS >= 2, "one chunk is copied while another is used");
  static constexpr int AHEAD = SLOTS - 1;

 public:
  // Every thread of the block comes here and meets the others.
  MEDNEXT_DEVICE FfnRing(const FfnArgs& a, char* slots) : a_(a), slots_(slots) {
    const int count = stays() ? chunks() : AHEAD;
    for (int i = 0; i < count; ++i) {
      Chunk::template start<THREADS>(a_, i, slots_ + i * Chunk::BYTES);
      copies_commit();
    }
    if (stays()) copies_wait<0>();
    barrier();
  }

  MEDNEXT_DEVICE int chunks() const { return a_.hidden / HIDDEN; }

  // No call of `chunk` waits for another thread.
  MEDNEXT_DEVICE bool stays() const { return chunks() <= SLOTS; }

  // The next chunk, which is chunk `index`; it may be read until the next call. Unless they stay, every thread of the
  // block comes here. `last`: after the last chunk comes no other round.
  MEDNEXT_DEVICE const char* chunk(int index, bool last) {
    if (stays()) return slots_ + index * Chunk::BYTES;
    copies_wait<AHEAD - 1>();
    barrier();  // all copies of this chunk have landed; nobody reads the one before any more
    const int free = slot_ == 0 ? AHEAD : slot_ - 1;
    int next = index + AHEAD;
    if (next < chunks() || !last) {
      if (next >= chunks()) next -= chunks();
      Chunk::template start<THREADS>(a_, next, slots_ + free * Chunk::BYTES);
    }
    copies_commit();
    const char* chunk = slots_ + slot_ * Chunk::BYTES;
    slot_ = slot_ == AHEAD ? 0 : slot_ + 1;
    return chunk;
  }

 private:
  const FfnArgs& a_;
  char* slots_;
  int slot_ = 0;
};

}  // namespace mednext
