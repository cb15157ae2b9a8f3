// Threads that wait for work, so that none is started for each of the hundred steps of a network.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace mednext {

inline int64_t process() {
#if defined(_WIN32)
  return 0;
#else
  return getpid();
#endif
}

class Pool {
 public:
  explicit Pool(int threads) {
    try {
      for (int i = 1; i < threads; ++i) helpers_.emplace_back([this, i] { serve(i); });
    } catch (const std::system_error&) {
      // The system has no more threads: those that began, and the caller, do the work.
    }
  }
  ~Pool() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ending_ = true;
    }
    begun_.notify_all();
    for (std::thread& helper : helpers_) helper.join();
  }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return static_cast<int>(helpers_.size()) + 1; }

  // Of a process that has forked into this one, where its threads do not exist: it can only be left behind.
  bool foreign() const { return owner_ != process(); }

  // Calls part(i, thread) for i in 0..count-1; it must not throw. Threads are 0..threads()-1.
  void run(int64_t count, const std::function<void(int64_t, int)>& part) {
    if (count <= 1 || helpers_.empty()) {
      for (int64_t i = 0; i < count; ++i) part(i, 0);
      return;
    }
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      part_ = &part;
      count_ = count;
      next_ = 0;
      working_ = helpers_.size();
      ++round_;
    }
    begun_.notify_all();
    work(part, count, 0);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [&] { return working_ == 0; });
  }

 private:
  void work(const std::function<void(int64_t, int)>& part, int64_t count, int thread) {
    for (int64_t i = next_++; i < count; i = next_++) part(i, thread);
  }

  void serve(int thread) {
    for (uint64_t seen = 0;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      begun_.wait(lock, [&] { return ending_ || round_ != seen; });
      if (ending_) return;
      seen = round_;
      const auto* const part = part_;
      const int64_t count = count_;
      lock.unlock();
      work(*part, count, thread);
      lock.lock();
      if (--working_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable begun_, done_;
  const std::function<void(int64_t, int)>* part_ = nullptr;
  int64_t count_ = 0;
  std::atomic<int64_t> next_{0};
  std::size_t working_ = 0;
  uint64_t round_ = 0;
  bool ending_ = false;
  const int64_t owner_ = process();
  std::vector<std::thread> helpers_;  // last: they use what stands above
};

}  // namespace mednext
