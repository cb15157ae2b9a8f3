// Slices that arrive one by one, and patches that run as soon as theirs are there.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "model.h"
#include "recipe.h"

namespace mednext {

// The volume is kept as it comes. Where the recipe lets a part be prepared without the rest, a thread runs the patches
// whose slices are complete, for the grid that the whole image has if nothing is cropped. That is a guess: it is used
// only while the slices so far reach every border that they can reach, and `finish` starts again where it was wrong.
class Stream : public std::enable_shared_from_this<Stream> {
 public:
  Stream(std::shared_ptr<Model> model, const Image& header, const SegmentOptions& options);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // Begin to work; the thread keeps the object alive until it ends.
  void start();

  void push(int64_t first, int64_t count, const void* voxels);
  void finish(uint16_t* labels, size_t count);
  mednext_stream_info describe() const;
  // Whoever waits in `finish` gets Error(CANCELLED); the thread ends after the patch in work. Waits for it unless
  // called in it.
  void close();

 private:
  void work();
  std::string why_not_early() const;
  std::optional<int64_t> next_window() const;
  bool guess_holds() const;
  void run_window(int64_t window);
  void join();

  const std::shared_ptr<Model> model_;
  const Image header_;     // what is pushed
  Image image_;            // what is kept of it: `bytes_`, in the colours of the network
  const SegmentOptions options_;
  const Computation computation_;
  std::vector<unsigned char> bytes_;
  Grid grid_;              // the guess
  int slice_axis_ = 0;     // network axis along which slices arrive
  std::string reason_;     // why nothing can run early; empty where it can
  std::vector<int64_t> nearest_;  // image position, on the slice axis, of every network slice

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<bool> here_;
  int64_t arrived_ = 0;
  Extent extent_;
  std::unique_ptr<Sliding> sliding_;
  std::vector<bool> done_;
  int64_t windows_done_ = 0, early_ = 0, undone_ = 0;
  bool stopping_ = false, finished_ = false;
  std::exception_ptr failure_;
  std::mutex joining_;
  std::thread worker_;
};

}  // namespace mednext
