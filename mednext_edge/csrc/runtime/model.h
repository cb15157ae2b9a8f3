// An open bundle: its manifest, its engine, and the one computation at a time that the engine serves.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "engine.h"
#include "image.h"
#include "manifest.h"
#include "mednext_edge.h"
#include "sliding.h"

namespace mednext {

struct SegmentOptions {
  double step = 0;  // 0: the manifest's
  bool mirror = false;
  mednext_progress progress = nullptr;
  void* user = nullptr;
};

class Model {
 public:
  Model(const std::string& path, const EngineOptions& options);

  const Manifest& manifest() const { return manifest_; }
  const std::string& provider() const { return provider_; }
  int threads() const { return threads_; }

  // Of an image whose geometry was checked. All throw Error(ARGUMENT) where the network answers otherwise, DATA,
  // ENGINE, MEMORY and CANCELLED, and write only when nothing was thrown.
  void segment(const Image& image, const SegmentOptions& options, uint16_t* labels);
  // The same of what `coloured` made of an image.
  void segment_coloured(const Image& image, const SegmentOptions& options, uint16_t* labels);
  // Probabilities of the classes, averaged over all windows and slices.
  void classify(const Image& image, const SegmentOptions& options, float* probabilities);
  // Throws Error(ARGUMENT) unless the network answers so.
  void need(bool classification) const;

  // Everything that began before this ends with Error(CANCELLED).
  void cancel() { ++cancels_; }

 private:
  friend class Computation;
  template <class Use>
  void run(const Image& given, std::optional<Colour> colour, const SegmentOptions& options, const Use& use);

  Manifest manifest_;
  std::unique_ptr<Engine> engine_;
  std::string provider_;
  int threads_;
  std::atomic<uint64_t> cancels_{0};
  std::mutex computing_;
  std::atomic<std::thread::id> owner_{};
};

// One computation on a model: what cancels it, and its turn at the engine.
class Computation {
 public:
  explicit Computation(Model& model) : model_(model), began_(model.cancels_) {}

  // Throws Error(CANCELLED) where the model was cancelled since.
  void check() const;
  // As `check`, after telling the caller.
  void report(const SegmentOptions& options, int64_t done, int64_t total) const;

  // The engine, for this thread alone as long as the turn lives. Throws Error(ARGUMENT) where this thread has it
  // already: a callback that computes on its own model would wait for ever.
  class Turn {
   public:
    explicit Turn(Model& model);
    ~Turn();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    Engine& engine() const { return *model_.engine_; }

   private:
    Model& model_;
    std::unique_lock<std::mutex> lock_;
  };

 private:
  Model& model_;
  uint64_t began_;
};

// Throws Error(MEMORY) where a computation over this grid would need more than the machine has.
void check_memory(const Manifest& manifest, const Image& image, const Shape& grid);

}  // namespace mednext
