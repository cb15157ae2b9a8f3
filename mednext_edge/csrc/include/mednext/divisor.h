// Division by a number that is known before the launch: a multiplication, an addition and a shift in place of some
// twenty instructions (Granlund, Montgomery, "Division by Invariant Integers using Multiplication", 1994).
#pragma once

#include "mednext/shim.h"

namespace mednext {

struct Divisor {
  uint32_t value, magic;
  int shift;

  // Of numbers in 0 .. 2^31 - 1.
  MEDNEXT_DEVICE uint32_t quotient(uint32_t number) const {
    const uint32_t high = static_cast<uint32_t>(static_cast<uint64_t>(number) * magic >> 32);
    return (high + number) >> shift;
  }
};

// `value` in 1 .. 2^31 - 1.
inline Divisor divisor(uint32_t value) {
  int shift = 0;
  while ((uint64_t{1} << shift) < value) ++shift;
  const uint64_t magic = (((uint64_t{1} << shift) - value) << 32) / value + 1;
  return {value, static_cast<uint32_t>(magic), shift};
}

}  // namespace mednext
