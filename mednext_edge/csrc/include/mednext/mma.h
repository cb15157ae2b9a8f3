// What a warp does with tensor cores. First of all one matrix product: sums[16][8] = a[16][16] b[16][8] + start[16][8],
// floats in between.
//
// A lane holds, with g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point
// type", in edition 9.2 section 9.7.14.5.8), its elements in rising order within and across its words:
//   a0 .. a7   row g for a0, a1, a4, a5, g + 8 for the others; column 2t + i % 2, and 8 more from a4 on
//   b0 .. b3   row 2t + i % 2, and 8 more from b2 on; column g
//   c0 .. c3   row g for c0, c1, g + 8 for the others; column 2t + i % 2        (sums and start)
// So the sums of two products side by side, rounded and packed, are the `a` of a next product.
//
// With integers b has 32 rows and a 32 columns, sums are int32, and a word holds four elements where it held two:
// columns of a and rows of b are 4t + i % 4, and 16 more in the second half ("... m16n8k32 with integer type").
//
// All 32 lanes of a warp come here together. The host adds up the exact products in float, one after the other.
#pragma once

#include "mednext/storage.h"

namespace mednext {

#if defined(__CUDACC__)

#define MEDNEXT_MMA(TYPE)                                                                                    \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE                                        \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};\n"                  \
               : "=f"(sums[0]), "=f"(sums[1]), "=f"(sums[2]), "=f"(sums[3])                                  \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(start[0]), "f"(start[1]), \
                 "f"(start[2]), "f"(start[3]))

template <class T>
MEDNEXT_DEVICE void mma(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&start)[4]);

template <>
MEDNEXT_DEVICE void mma<F16>(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                             const float (&start)[4]) {
  MEDNEXT_MMA("f16");
}

template <>
MEDNEXT_DEVICE void mma<BF16>(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                              const float (&start)[4]) {
  MEDNEXT_MMA("bf16");
}

#undef MEDNEXT_MMA

template <class T>
MEDNEXT_DEVICE void mma(int32_t (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                        const int32_t (&start)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %11, %12, %13};\n"
      : "=r"(sums[0]), "=r"(sums[1]), "=r"(sums[2]), "=r"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(start[0]), "r"(start[1]), "r"(start[2]),
        "r"(start[3]));
}

// Four matrices of 8 rows of 16 bytes in shared memory, each turned over: lane l says where row l % 8 of matrix l / 8
// lies, and gets of every matrix the 2-byte elements g of rows 2t and 2t + 1 in one word.
MEDNEXT_DEVICE void read_transposed(const char* row, uint32_t (&words)[4]) {
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(from)
               : "memory");
}

#else

inline void read_transposed(const char* row, uint32_t (&words)[4]) {
  host::touch(row, 16);
  float held[sizeof row / sizeof(float)];
  std::memcpy(held, &row, sizeof row);
  warp_exchange(held);
  const int lane = thread_index() % 32;
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const char* from;
      std::memcpy(&from, exchanged(matrix * 8 + lane % 4 * 2 + i), sizeof from);
      std::memcpy(&pair[i], from + lane / 4 * 2, 2);
    }
    std::memcpy(&words[matrix], pair, 4);
  }
}

template <class T>
void mma(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&start)[4]) {
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  float held[12];
  for (int i = 0; i < 6; ++i) {
    float pair[2];
    T::unpack(words[i], pair);
    held[2 * i] = pair[0], held[2 * i + 1] = pair[1];
  }
  warp_exchange(held);
  const int lane = thread_index() % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    const float *left[4], *right[4];
    for (int t = 0; t < 4; ++t) {
      left[t] = exchanged(row % 8 * 4 + t) + row / 8 * 2;
      right[t] = exchanged(column * 4 + t) + 8;
    }
    float sum = start[i];
    for (int half = 0; half < 2; ++half) {
      for (int t = 0; t < 4; ++t) {
        const float *one = left[t] + half * 4, *other = right[t] + half * 2;
        sum += one[0] * other[0];
        sum += one[1] * other[1];
      }
    }
    sums[i] = sum;
  }
}

template <class T>
void mma(int32_t (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int32_t (&start)[4]) {
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  float held[6];  // bits alone
  std::memcpy(held, words, sizeof words);
  warp_exchange(held);
  const int lane = thread_index() % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    int32_t sum = start[i];
    for (int t = 0; t < 4; ++t) {
      for (int half = 0; half < 2; ++half) {
        int8_t one[4], other[4];
        std::memcpy(one, exchanged(row % 8 * 4 + t) + half * 2 + row / 8, 4);
        std::memcpy(other, exchanged(column * 4 + t) + 4 + half, 4);
        for (int k = 0; k < 4; ++k) sum += one[k] * other[k];
      }
    }
    sums[i] = sum;
  }
}

#endif

}  // namespace mednext
