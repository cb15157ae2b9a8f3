/* What the processor under this process can do for INT8 and BF16 convolutions.
 *
 * Reads CPUID and XCR0 on x86-64 (Intel SDM vol. 2A, CPUID); elsewhere the mask is 0. A bit is set only
 * when the operating system also saves the registers it needs.
 */
#ifndef MEDNEXT_CPU_H
#define MEDNEXT_CPU_H

#include <stdint.h>

#if defined(_WIN32)
#define MEDNEXT_API __declspec(dllexport)
#else
#define MEDNEXT_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum {
  MEDNEXT_CPU_AVX2 = 1u << 0,
  MEDNEXT_CPU_AVX512 = 1u << 1,      /* F, BW, VL and DQ together */
  MEDNEXT_CPU_AVX_VNNI = 1u << 2,    /* 256-bit VNNI without AVX-512 */
  MEDNEXT_CPU_AVX512_VNNI = 1u << 3,
  MEDNEXT_CPU_AVX512_BF16 = 1u << 4,
  MEDNEXT_CPU_AMX_INT8 = 1u << 5,
  MEDNEXT_CPU_AMX_BF16 = 1u << 6,
  MEDNEXT_CPU_AVX512_FP16 = 1u << 7,
  MEDNEXT_CPU_AVX512_VBMI = 1u << 8
};

/* Mask of the bits above. Never fails. */
MEDNEXT_API uint32_t mednext_cpu_features(void);

#ifdef __cplusplus
}
#endif
#endif
