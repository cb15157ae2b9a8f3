// A block of GPU threads on a CPU: every thread is a fiber, a barrier hands over to the next one.
//
// Made to expose mistakes rather than to be quick: shared memory starts as NaN, an asynchronous copy lands only
// when its thread waits for it, threads run in rising order in one phase and in falling order in the next, and a
// barrier that only some threads reach fails the launch. So does an exchange that only some lanes of a warp reach, and
// an address that is no multiple of what is read, written or copied at once.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

namespace mednext {
namespace host {

constexpr int LAUNCH_FAILURE = 719;      // cudaErrorLaunchFailure
constexpr int MISALIGNED_ADDRESS = 716;  // cudaErrorMisalignedAddress
constexpr int MULTIPROCESSORS = 4;   // few, so that small tensors are still cut into several blocks
constexpr size_t STACK = 128 * 1024;

constexpr int WARP = 32;
constexpr int EXCHANGED = 12;  // floats that a lane hands to the others of its warp

struct Copy {
  char* to;
  const void* from;  // null: zeros
  size_t bytes;
};

enum class At { START, BARRIER, EXCHANGE, END };

struct Fiber {
  ucontext_t context;  // where it starts; from then on it is left and entered by jumps, which make no system call
  jmp_buf here;
  std::unique_ptr<char[]> stack{new char[STACK]};
  std::vector<Copy> open;                // issued, not committed
  std::deque<std::vector<Copy>> groups;  // committed, not landed
  At at = At::END;
  // Of the last two exchanges: a lane may come to the next one before another has read what it gave to this one.
  float given[2][EXCHANGED];
  int exchanges = 0;
};

struct Block {
  std::vector<Fiber> fibers;
  jmp_buf scheduler;
  std::function<void()> body;
  int thread = 0;
  int index[3] = {0, 0, 0};
  int blocks_x = 0;
  bool misaligned = false;
};

inline Block& current() {
  static thread_local Block block;
  return block;
}

inline Fiber& current_fiber() { return current().fibers[current().thread]; }

inline void touch(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes) current().misaligned = true;
}

inline void copy(char* shared, const void* global, bool inside, size_t bytes) {
  touch(shared, bytes);
  touch(global, bytes);
  current_fiber().open.push_back({shared, inside ? global : nullptr, bytes});
}

inline void fiber_main() {
  current().body();
  current_fiber().at = At::END;
  _longjmp(current().scheduler, 1);
}

inline void pause(At at) {
  Fiber& fiber = current_fiber();
  fiber.at = at;
  if (_setjmp(fiber.here) == 0) _longjmp(current().scheduler, 1);
}

// Lets the current fiber run to its next pause. Not inlined: no variable may change between setjmp and its return.
__attribute__((noinline)) inline void resume(Block& block) {
  Fiber& fiber = current_fiber();
  if (_setjmp(block.scheduler) != 0) return;
  if (fiber.at == At::START) setcontext(&fiber.context);
  _longjmp(fiber.here, 1);
}

inline void land(Fiber& fiber, size_t left) {
  while (fiber.groups.size() > left) {
    for (const Copy& copy : fiber.groups.front()) {
      if (copy.from) {
        std::memcpy(copy.to, copy.from, copy.bytes);
      } else {
        std::memset(copy.to, 0, copy.bytes);
      }
    }
    fiber.groups.pop_front();
  }
}

// Runs threads `first` .. `end` - 1, which are a warp, to the next barrier; false when they part at an exchange.
inline bool run_warp(Block& block, int first, int end, bool rising) {
  for (;; rising = !rising) {
    int exchanging = 0;
    for (int i = first; i < end; ++i) {
      block.thread = rising ? i : first + end - 1 - i;
      resume(block);
      exchanging += current_fiber().at == At::EXCHANGE;
    }
    if (exchanging == 0) return true;
    if (exchanging != WARP) return false;
  }
}

// Runs `block.body` as `threads` threads; false when they part at a barrier or an exchange.
inline bool run(Block& block, int threads) {
  if (static_cast<int>(block.fibers.size()) < threads) block.fibers.resize(threads);
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = block.fibers[i];
    fiber.open.clear();
    fiber.groups.clear();
    fiber.at = At::START;
    fiber.exchanges = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
  }
  const int warps = (threads + WARP - 1) / WARP;
  for (bool rising = true;; rising = !rising) {
    for (int i = 0; i < warps; ++i) {
      const int first = (rising ? i : warps - 1 - i) * WARP, end = first + WARP < threads ? first + WARP : threads;
      if (!run_warp(block, first, end, rising)) return false;
    }
    int ended = 0;
    for (int i = 0; i < threads; ++i) ended += block.fibers[i].at == At::END;
    if (ended == threads) return true;
    if (ended != 0) return false;
  }
}

}  // namespace host

inline int thread_index() { return host::current().thread; }
inline int block_x() { return host::current().index[0]; }
inline int block_y() { return host::current().index[1]; }
inline int block_z() { return host::current().index[2]; }
inline int blocks_x() { return host::current().blocks_x; }

inline void warp_order() {}  // it orders what a compiler for GPUs may move; no thread waits for another's writes

inline void forget(int&) {}

inline void barrier() { host::pause(host::At::BARRIER); }

// Hands floats to all lanes of the warp, which come here together and then read them by lane.
template <int COUNT>
inline void warp_exchange(const float (&values)[COUNT]) {
  static_assert(COUNT <= host::EXCHANGED, "room for what a lane gives");
  host::Fiber& fiber = host::current_fiber();
  std::memcpy(fiber.given[++fiber.exchanges % 2], values, sizeof values);
  host::pause(host::At::EXCHANGE);
}

inline const float* exchanged(int lane) {
  const host::Block& block = host::current();
  return block.fibers[block.thread / host::WARP * host::WARP + lane].given[host::current_fiber().exchanges % 2];
}

inline Piece read_piece(const void* from) {
  host::touch(from, sizeof(Piece));
  Piece piece;
  std::memcpy(&piece, from, sizeof piece);
  return piece;
}

inline void write_piece(void* to, const Piece& piece) {
  host::touch(to, sizeof piece);
  std::memcpy(to, &piece, sizeof piece);
}

inline uint32_t read_word(const void* from) {
  host::touch(from, sizeof(uint32_t));
  uint32_t word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

inline void write_word(void* to, uint32_t word) {
  host::touch(to, sizeof word);
  std::memcpy(to, &word, sizeof word);
}

inline void write_pair(void* to, uint32_t low, uint32_t high) {
  const uint32_t words[2] = {low, high};
  host::touch(to, sizeof words);
  std::memcpy(to, words, sizeof words);
}

inline uint32_t even_bytes(uint32_t low, uint32_t high) {
  return (low & 0xffu) | (low >> 8 & 0xff00u) | (high & 0xffu) << 16 | (high >> 16 & 0xffu) << 24;
}

inline uint32_t odd_bytes(uint32_t low, uint32_t high) { return even_bytes(low >> 8, high >> 8); }

inline float saturate(float value) { return value > 0.0f ? (value < 1.0f ? value : 1.0f) : 0.0f; }

inline void copy_async(char* shared, const void* global, bool inside) {
  host::copy(shared, global, inside, 16);
}

inline void copy_word_async(char* shared, const void* global, bool inside) {
  host::copy(shared, global, inside, 4);
}

inline void copies_commit() {
  host::Fiber& fiber = host::current_fiber();
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}

template <int LEFT>
inline void copies_wait() {
  host::land(host::current_fiber(), LEFT);
}

template <class Kernel>
int launch(const Grid& grid, const typename Kernel::Args& args, void*) {
  host::Block& block = host::current();
  std::vector<uint64_t> shared(Kernel::SHARED / 8 + 16);
  char* memory = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(shared.data()) + 127) & ~uintptr_t{127});
  block.body = [&] { Kernel::run(args, memory); };
  block.blocks_x = static_cast<int>(grid.x);
  block.misaligned = false;
  for (int64_t z = 0; z < grid.z; ++z) {
    for (int64_t y = 0; y < grid.y; ++y) {
      for (int64_t x = 0; x < grid.x; ++x) {
        const int64_t index[] = {x, y, z};
        for (int i = 0; i < 3; ++i) block.index[i] = static_cast<int>(index[i]);
        std::memset(shared.data(), 0xff, shared.size() * 8);
        if (!host::run(block, Kernel::THREADS)) return host::LAUNCH_FAILURE;
        if (block.misaligned) return host::MISALIGNED_ADDRESS;
      }
    }
  }
  return 0;
}

inline int multiprocessors(int* count) {
  *count = host::MULTIPROCESSORS;
  return 0;
}

inline const char* machine_error(int code) {
  switch (code) {
    case host::LAUNCH_FAILURE:
      return "some threads did not reach a barrier of their block or an exchange of their warp";
    case host::MISALIGNED_ADDRESS:
      return "an address is not a multiple of what is read or written there at once";
    default:
      return "unknown error";
  }
}

}  // namespace mednext
