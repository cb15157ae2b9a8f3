// A loop over independent parts on several threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace mednext {

// Calls part(i) for i in 0..count-1; the first exception is thrown again when all threads have ended.
template <class Part>
void parallel_for(int64_t count, int threads, const Part& part) {
  const int64_t workers = std::min<int64_t>(count, std::max(threads, 1));
  if (workers <= 1) {
    for (int64_t i = 0; i < count; ++i) part(i);
    return;
  }
  std::atomic<int64_t> next{0};
  std::exception_ptr failure;
  std::mutex failing;
  const auto work = [&] {
    try {
      for (int64_t i = next++; i < count; i = next++) part(i);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(failing);
      if (!failure) failure = std::current_exception();
      next = count;
    }
  };
  std::vector<std::thread> helpers;
  helpers.reserve(static_cast<size_t>(workers));
  try {
    for (int64_t i = 1; i < workers; ++i) helpers.emplace_back(work);
  } catch (const std::system_error&) {
    // The system has no more threads: those that began, and this one, do the work.
  }
  work();
  for (std::thread& helper : helpers) helper.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace mednext
