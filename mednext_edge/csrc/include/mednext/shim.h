// What a kernel needs from its machine: indices, barrier, copies, launch; mma.h adds the tensor cores. nvcc gives the
// GPU's own; a host compiler gives host/block.h, which runs the threads of a block as fibers. Kernels are written once.
//
// A kernel is a struct with `Args`, THREADS, MIN_BLOCKS (per multiprocessor), SHARED (bytes) and
// `static void run(const Args&, char* shared)`.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mednext {

struct Grid {
  int64_t x, y, z;
  bool fits() const { return x > 0 && x < (int64_t{1} << 31) && y > 0 && y < 65536 && z > 0 && z < 65536; }
};

// 16 bytes that are read and written at once; their address is a multiple of 16.
struct Piece {
  uint32_t words[4];
};

}  // namespace mednext

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#define MEDNEXT_DEVICE __device__ __forceinline__

namespace mednext {

MEDNEXT_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
MEDNEXT_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
MEDNEXT_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
MEDNEXT_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
MEDNEXT_DEVICE int blocks_x() { return static_cast<int>(gridDim.x); }
MEDNEXT_DEVICE void barrier() { __syncthreads(); }
// Reads of shared memory behind it do not move in front of it; the 32 threads of a warp come here together.
MEDNEXT_DEVICE void warp_order() { __syncwarp(); }

// The compiler computes again, behind it, what follows from `value`, rather than keep it in registers until here.
MEDNEXT_DEVICE void forget(int& value) { asm volatile("" : "+r"(value)); }

MEDNEXT_DEVICE Piece read_piece(const void* from) {
  const uint4 v = *static_cast<const uint4*>(from);
  return {{v.x, v.y, v.z, v.w}};
}
MEDNEXT_DEVICE void write_piece(void* to, const Piece& piece) {
  const auto& w = piece.words;
  *static_cast<uint4*>(to) = make_uint4(w[0], w[1], w[2], w[3]);
}
// A word; its address is a multiple of 4.
MEDNEXT_DEVICE uint32_t read_word(const void* from) { return *static_cast<const uint32_t*>(from); }
MEDNEXT_DEVICE void write_word(void* to, uint32_t word) { *static_cast<uint32_t*>(to) = word; }

// Two words at once; their address is a multiple of 8.
MEDNEXT_DEVICE void write_pair(void* to, uint32_t low, uint32_t high) {
  *static_cast<uint2*>(to) = make_uint2(low, high);
}

// Bytes 0 and 2 of both words, or 1 and 3.
MEDNEXT_DEVICE uint32_t even_bytes(uint32_t low, uint32_t high) { return __byte_perm(low, high, 0x6420); }
MEDNEXT_DEVICE uint32_t odd_bytes(uint32_t low, uint32_t high) { return __byte_perm(low, high, 0x7531); }

// To [0, 1]; not-a-number to 0.
MEDNEXT_DEVICE float saturate(float value) { return __saturatef(value); }

// 16 bytes into shared memory, or 16 zero bytes when not `inside`; `global` must be readable memory either way.
MEDNEXT_DEVICE void copy_async(char* shared, const void* global, bool inside) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}
// The same with 4 bytes.
MEDNEXT_DEVICE void copy_word_async(char* shared, const void* global, bool inside) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = inside ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}
MEDNEXT_DEVICE void copies_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Until at most `LEFT` of this thread's groups are under way.
template <int LEFT>
MEDNEXT_DEVICE void copies_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(LEFT) : "memory");
}

template <class Kernel>
__global__ void __launch_bounds__(Kernel::THREADS, Kernel::MIN_BLOCKS) entry(const typename Kernel::Args args) {
  extern __shared__ __align__(128) char shared[];
  Kernel::run(args, shared);
}

template <class Kernel>
int launch(const Grid& grid, typename Kernel::Args args, void* stream) {
  const void* function = reinterpret_cast<const void*>(&entry<Kernel>);
  if (Kernel::SHARED > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, Kernel::SHARED);
    if (error != cudaSuccess) return error;
  }
  void* pointers[] = {&args};
  return cudaLaunchKernel(
      function, dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z)),
      dim3(Kernel::THREADS), pointers, Kernel::SHARED, static_cast<cudaStream_t>(stream));
}

inline int multiprocessors(int* count) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  return cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
}

inline const char* machine_error(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

}  // namespace mednext

#else

#define MEDNEXT_DEVICE inline
#include "../../host/block.h"

#endif
