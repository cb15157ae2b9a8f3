// A block of GPU threads on a CPU: every thread is a fiber, a barrier hands over to the next one.
//
// Made to expose mistakes rather than to be quick: shared memory starts as NaN, an asynchronous copy lands only
// when its thread waits for it, threads run in rising order in one phase and in falling order in the next, and a
// barrier that only some threads reach fails the launch.
#pragma once

#include <ucontext.h>

#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

namespace mednext {
namespace host {

constexpr int LAUNCH_FAILURE = 719;  // cudaErrorLaunchFailure
constexpr int MULTIPROCESSORS = 4;   // few, so that small tensors are still cut into several blocks
constexpr size_t STACK = 128 * 1024;

struct Copy {
  char* to;
  const void* from;  // null: zeros
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK]};
  std::vector<Copy> open;                // issued, not committed
  std::deque<std::vector<Copy>> groups;  // committed, not landed
  bool alive = false;
};

struct Block {
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  std::function<void()> body;
  int thread = 0;
  int index[3] = {0, 0, 0};
  int blocks_x = 0;
};

inline Block& current() {
  static thread_local Block block;
  return block;
}

inline void fiber_main() {
  Block& block = current();
  block.body();
  block.fibers[block.thread].alive = false;
}

inline void land(Fiber& fiber, size_t left) {
  while (fiber.groups.size() > left) {
    for (const Copy& copy : fiber.groups.front()) {
      if (copy.from) {
        std::memcpy(copy.to, copy.from, 16);
      } else {
        std::memset(copy.to, 0, 16);
      }
    }
    fiber.groups.pop_front();
  }
}

// Runs `block.body` as `threads` threads; false when they part at a barrier.
inline bool run(Block& block, int threads) {
  if (static_cast<int>(block.fibers.size()) < threads) block.fibers.resize(threads);
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = block.fibers[i];
    fiber.open.clear();
    fiber.groups.clear();
    fiber.alive = true;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = &block.scheduler;
    makecontext(&fiber.context, fiber_main, 0);
  }
  for (bool rising = true;; rising = !rising) {
    int alive = 0;
    for (int i = 0; i < threads; ++i) {
      block.thread = rising ? i : threads - 1 - i;
      swapcontext(&block.scheduler, &block.fibers[block.thread].context);
      alive += block.fibers[block.thread].alive;
    }
    if (alive == 0) return true;
    if (alive != threads) return false;
  }
}

}  // namespace host

inline int thread_index() { return host::current().thread; }
inline int block_x() { return host::current().index[0]; }
inline int block_y() { return host::current().index[1]; }
inline int block_z() { return host::current().index[2]; }
inline int blocks_x() { return host::current().blocks_x; }

inline void warp_order() {}  // it orders what a compiler for GPUs may move; no thread waits for another's writes

inline void barrier() {
  host::Block& block = host::current();
  swapcontext(&block.fibers[block.thread].context, &block.scheduler);
}

inline void copy_async(char* shared, const void* global, bool inside) {
  host::Block& block = host::current();
  block.fibers[block.thread].open.push_back({shared, inside ? global : nullptr});
}

inline void copies_commit() {
  host::Fiber& fiber = host::current().fibers[host::current().thread];
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}

template <int LEFT>
inline void copies_wait() {
  host::land(host::current().fibers[host::current().thread], LEFT);
}

template <class Kernel>
int launch(const Grid& grid, const typename Kernel::Args& args, void*) {
  host::Block& block = host::current();
  std::vector<uint64_t> shared(Kernel::SHARED / 8 + 16);
  char* memory = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(shared.data()) + 127) & ~uintptr_t{127});
  block.body = [&] { Kernel::run(args, memory); };
  block.blocks_x = static_cast<int>(grid.x);
  for (int64_t z = 0; z < grid.z; ++z) {
    for (int64_t y = 0; y < grid.y; ++y) {
      for (int64_t x = 0; x < grid.x; ++x) {
        const int64_t index[] = {x, y, z};
        for (int i = 0; i < 3; ++i) block.index[i] = static_cast<int>(index[i]);
        std::memset(shared.data(), 0xff, shared.size() * 8);
        if (!host::run(block, Kernel::THREADS)) return host::LAUNCH_FAILURE;
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
  return code == host::LAUNCH_FAILURE ? "some threads of a block did not reach a barrier" : "unknown error";
}

}  // namespace mednext
