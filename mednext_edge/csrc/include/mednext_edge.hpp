// mednext_edge.h for C++17: handles that close themselves, errors as exceptions, vectors instead of pointers.
//
//   mednext_edge::Model model("hippocampus.openvino-int8");
//   std::vector<uint16_t> labels = model.segment(image);
//
// Header only. Research software, not a medical device: not for diagnosis or treatment.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "mednext_edge.h"

namespace mednext_edge {

// What a call of the C interface has to say.
class Failure : public std::runtime_error {
 public:
  Failure(mednext_status code, const char* message) : std::runtime_error(message), status_(code) {}
  mednext_status status() const noexcept { return status_; }

 private:
  mednext_status status_;
};

inline void check(mednext_status status) {
  if (status != MEDNEXT_OK) throw Failure(status, mednext_last_error());
}

// Called after every patch, maybe in another thread; false cancels. What it throws cancels too, and is lost.
using Progress = std::function<bool(int64_t done, int64_t total)>;

struct SegmentSettings {
  double step = 0;  // 0: the bundle's
  bool mirror = false;
  Progress progress;

  // Valid as long as this object stays where it is.
  mednext_segment_options options() const {
    mednext_segment_options options = MEDNEXT_SEGMENT_OPTIONS_INIT;
    options.step = step;
    options.mirror = mirror;
    if (!progress) return options;
    options.user = const_cast<Progress*>(&progress);
    options.progress = [](int64_t done, int64_t total, void* user) noexcept -> int {
      try {
        return (*static_cast<Progress*>(user))(done, total) ? 0 : 1;
      } catch (...) {
        return 1;
      }
    };
    return options;
  }
};

inline int64_t voxels(const mednext_image& image) { return image.shape[0] * image.shape[1] * image.shape[2]; }

// An open bundle. May be used from several threads, which then wait for each other.
class Model {
 public:
  // device: empty for the engine's usual one. threads: 0 lets the engine choose.
  explicit Model(const std::string& path, const std::string& device = "", int threads = 0) {
    mednext_options options = MEDNEXT_OPTIONS_INIT;
    if (!device.empty()) options.device = device.c_str();
    options.threads = threads;
    check(mednext_open(path.c_str(), &options, &handle_));
  }
  Model(Model&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Model& operator=(Model&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;
  ~Model() {
    if (handle_) mednext_close(handle_);
  }

  mednext_info describe() const {
    mednext_info info = MEDNEXT_INFO_INIT;
    check(mednext_describe(handle_, &info));
    return info;
  }

  // Names of the labels 0..classes-1.
  std::vector<std::string> labels() const {
    std::vector<std::string> names;
    const int32_t classes = describe().classes;
    for (int32_t value = 0; value < classes; ++value) {
      char name[256];
      check(mednext_label_name(handle_, value, name, sizeof name));
      names.emplace_back(name);
    }
    return names;
  }

  // [z][y][x] on the image's own grid.
  std::vector<uint16_t> segment(const mednext_image& image, const SegmentSettings& settings = {}) const {
    const mednext_segment_options options = settings.options();
    const bool sized = image.shape[0] > 0 && image.shape[1] > 0 && image.shape[2] > 0;
    std::vector<uint16_t> labels(sized ? static_cast<size_t>(voxels(image)) : 1);
    check(mednext_segment(handle_, &image, &options, labels.data(), labels.size()));
    return labels;
  }

  // Probability of each class, in the order of `labels`.
  std::vector<float> classify(const mednext_image& image, const SegmentSettings& settings = {}) const {
    const mednext_segment_options options = settings.options();
    std::vector<float> probabilities(static_cast<size_t>(describe().classes));
    check(mednext_classify(handle_, &image, &options, probabilities.data(), probabilities.size()));
    return probabilities;
  }

  void cancel() const { check(mednext_cancel(handle_)); }
  mednext_model* handle() const { return handle_; }

 private:
  mednext_model* handle_ = nullptr;
};

// Slices as they arrive. Must not be moved while patches run, since the callback is part of it.
class Stream {
 public:
  Stream(const Model& model, const mednext_image& header, SegmentSettings settings = {})
      : settings_(std::move(settings)), voxels_(voxels(header)) {
    const mednext_segment_options options = settings_.options();
    check(mednext_stream_open(model.handle(), &header, &options, &handle_));
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { mednext_stream_close(handle_); }

  // [channels][count][y][x] of the header's dtype, from slice `first` on.
  void push(int64_t first, int64_t count, const void* slices) {
    check(mednext_stream_push(handle_, first, count, slices));
  }

  std::vector<uint16_t> finish() {
    std::vector<uint16_t> labels(static_cast<size_t>(voxels_));
    check(mednext_stream_finish(handle_, labels.data(), labels.size()));
    return labels;
  }

  mednext_stream_info describe() const {
    mednext_stream_info info = MEDNEXT_STREAM_INFO_INIT;
    check(mednext_stream_describe(handle_, &info));
    return info;
  }

 private:
  SegmentSettings settings_;
  int64_t voxels_;
  mednext_stream* handle_ = nullptr;
};

}  // namespace mednext_edge
