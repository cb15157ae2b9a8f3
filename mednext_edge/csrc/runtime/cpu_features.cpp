#include "mednext_cpu.h"

#if defined(__x86_64__) || defined(_M_X64)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif

namespace {

struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
#if defined(_MSC_VER)
  int out[4];
  __cpuidex(out, static_cast<int>(leaf), static_cast<int>(subleaf));
  r = {static_cast<uint32_t>(out[0]), static_cast<uint32_t>(out[1]), static_cast<uint32_t>(out[2]),
       static_cast<uint32_t>(out[3])};
#else
  __cpuid_count(leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
#endif
  return r;
}

uint64_t xcr0() {
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
#endif
}

bool bit(uint32_t word, int position) { return (word >> position) & 1u; }

}  // namespace

uint32_t mednext_cpu_features(void) {
  if (cpuid(0, 0).eax < 7) return 0;
  if (!bit(cpuid(1, 0).ecx, 27)) return 0;  // OSXSAVE: without it XCR0 cannot be read
  const uint64_t saved = xcr0();
  const bool ymm = (saved & 0x06) == 0x06;
  const bool zmm = (saved & 0xe6) == 0xe6;
  const bool tiles = (saved & 0x60000) == 0x60000;
  const Registers seven = cpuid(7, 0);
  const Registers seven_one = seven.eax >= 1 ? cpuid(7, 1) : Registers{};

  uint32_t mask = 0;
  if (ymm && bit(seven.ebx, 5)) mask |= MEDNEXT_CPU_AVX2;
  if (ymm && bit(seven_one.eax, 4)) mask |= MEDNEXT_CPU_AVX_VNNI;
  const bool avx512 = zmm && bit(seven.ebx, 16) && bit(seven.ebx, 30) && bit(seven.ebx, 31) && bit(seven.ebx, 17);
  if (avx512) {
    mask |= MEDNEXT_CPU_AVX512;
    if (bit(seven.ecx, 11)) mask |= MEDNEXT_CPU_AVX512_VNNI;
    if (bit(seven_one.eax, 5)) mask |= MEDNEXT_CPU_AVX512_BF16;
    if (bit(seven.ecx, 1)) mask |= MEDNEXT_CPU_AVX512_VBMI;
    if (bit(seven.edx, 23)) mask |= MEDNEXT_CPU_AVX512_FP16;
  }
  if (tiles && bit(seven.edx, 25)) mask |= MEDNEXT_CPU_AMX_INT8;
  if (tiles && bit(seven.edx, 22)) mask |= MEDNEXT_CPU_AMX_BF16;
  return mask;
}

#else

uint32_t mednext_cpu_features(void) { return 0; }

#endif
