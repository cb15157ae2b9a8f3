// A (y, x) window of one plane, channel by channel: what lies channels-last in memory comes into shared memory as it
// is, is turned over there, and then holds neighbours along x side by side, as the fragments of tensor cores want them.
//
// A warp turns over groups of 32 voxels: each of its reads (see read_transposed) takes four matrices of 8 voxels, and
// which voxels make up which matrix is chosen so that a lane gets eight neighbours.
#pragma once

#include "mednext/mma.h"
#include "mednext/tile.h"

namespace mednext {

constexpr int BAND_CHANNELS = 16;  // of a block: 32 bytes a voxel in half precision, the least that memory hands out

// As copied. Voxel 8 t + 2 j + i of a group, which is in row 2 t + i of matrix j: eight pieces that are read at once
// lie in different banks, and so do eight that are copied at once.
template <class T, int HEIGHT_, int WIDTH_>
struct RawWindow {
  static constexpr int HEIGHT = HEIGHT_, WIDTH = WIDTH_, GROUPS = (HEIGHT * WIDTH + 31) / 32;
  static constexpr int PIECES = BAND_CHANNELS * static_cast<int>(sizeof(typename T::Element)) / 16;
  static constexpr int GROUP_BYTES = 32 * 16 * PIECES, BYTES = GROUPS * GROUP_BYTES;

  MEDNEXT_DEVICE static int place(int voxel, int piece) {
    return voxel / 32 * GROUP_BYTES + place_in_group(voxel / 2 % 4, voxel / 8 % 4 * 2 + voxel % 2, piece);
  }

  // Of a row of matrix j, piece by piece.
  MEDNEXT_DEVICE static int place_in_group(int j, int row, int piece) {
    const int line = j * PIECES + piece;
    return line * 128 + (row ^ line % 4 * 2) * 16;
  }
};

// Turned over: [channel][row][x], rows without a gap, channels PITCH bytes apart, so that what lanes write at once lies
// in different banks: 16 bytes a lane in half precision, twice 8 in int8, where a matrix holds pairs of channels.
template <class T, class Raw>
struct ChannelWindow {
  static constexpr int ELEMENT = static_cast<int>(sizeof(typename T::Element));
  static constexpr int ROW_BYTES = Raw::WIDTH * ELEMENT, GROUP = 32 * ELEMENT, LEAST = Raw::GROUPS * GROUP;
  static constexpr int PITCH = ELEMENT == 1 ? LEAST + 16 : LEAST / 128 * 128 + (LEAST % 128 <= 64 ? 64 : 192);
  static constexpr int BYTES = BAND_CHANNELS * PITCH;

  // Turning over: where a thread of so many warps reads and writes in its first group, as one word. Its others follow
  // STEP groups apart.
  template <int WARPS>
  struct Turn {
    static constexpr int STEP = WARPS / Raw::PIECES, TURNS = (Raw::GROUPS + STEP - 1) / STEP;
    static_assert(WARPS % Raw::PIECES == 0, "a warp keeps to one of the pieces");
    static_assert(Raw::BYTES <= 1 << 16 && BYTES <= 1 << 16, "both fit a word");

    MEDNEXT_DEVICE static uint32_t places() {
      const int lane = thread_index() % 32, g = lane / 4, t = lane % 4;
      const int warp = thread_index() / 32, piece = warp % Raw::PIECES, group = warp / Raw::PIECES;
      const int from = group * Raw::GROUP_BYTES + Raw::place_in_group(lane / 8, lane % 8, piece);
      const int channel = ELEMENT == 1 ? 2 * g : 8 * piece + g;
      const int to = channel * PITCH + group * GROUP + t * GROUP / 4;
      return static_cast<uint32_t>(from) | static_cast<uint32_t>(to) << 16;
    }

    MEDNEXT_DEVICE static void run(uint32_t places, const char* raw, char* planes) {
      raw += places & 0xffff, planes += places >> 16;
#pragma unroll
      for (int i = 0; i < TURNS; ++i) {
        if (thread_index() / 32 / Raw::PIECES + i * STEP >= Raw::GROUPS) break;
        Piece eight;
        read_transposed(raw + i * STEP * Raw::GROUP_BYTES, eight.words);
        char* to = planes + i * STEP * GROUP;
        if constexpr (ELEMENT == 1) {
          const auto& w = eight.words;
          write_pair(to, even_bytes(w[0], w[1]), even_bytes(w[2], w[3]));
          write_pair(to + PITCH, odd_bytes(w[0], w[1]), odd_bytes(w[2], w[3]));
        } else {
          write_piece(to, eight);
        }
      }
    }
  };
};

}  // namespace mednext
