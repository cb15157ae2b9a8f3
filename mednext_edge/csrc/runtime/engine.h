// The one call that every engine answers: a patch in, logits out.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "manifest.h"

namespace mednext {

struct EngineOptions {
  std::string device;  // empty: the engine's usual one
  int threads = 0;     // 0: the engine chooses
};

// A network ready to run, for one thread at a time.
class Engine {
 public:
  virtual ~Engine() = default;
  // Where the next patch goes: [channels, *patch].
  virtual float* input() = 0;
  // Logits [outputs, *patch], of a classification [outputs], valid until the next run. Throws Error(ENGINE).
  virtual const float* run() = 0;
  // Name and version, such as `openvino 2026.4.1`.
  virtual std::string provider() const = 0;
};

// The engine of a verified bundle. Throws Error(BACKEND).
std::unique_ptr<Engine> open_engine(const std::filesystem::path& folder, const Manifest& manifest,
                                    const EngineOptions& options);

// One for each kind; `open_engine` chooses by the bundle's target.
std::unique_ptr<Engine> open_native(const std::filesystem::path& folder, const Manifest& manifest,
                                    const EngineOptions& options);
std::unique_ptr<Engine> open_openvino(const std::filesystem::path& folder, const Manifest& manifest,
                                      const EngineOptions& options);
std::unique_ptr<Engine> open_tensorrt(const std::filesystem::path& folder, const Manifest& manifest,
                                      const EngineOptions& options);

}  // namespace mednext
