#include "engine.h"

#include "error.h"

namespace mednext {
namespace {

struct Backend {
  const char* target;
  std::unique_ptr<Engine> (*open)(const std::filesystem::path&, const Manifest&, const EngineOptions&);
};
constexpr Backend kBackends[] = {
    {"native", open_native}, {"openvino", open_openvino}, {"trt", open_tensorrt}, {"trt-rtx", open_tensorrt}};

}  // namespace

std::unique_ptr<Engine> open_engine(const std::filesystem::path& folder, const Manifest& manifest,
                                    const EngineOptions& options) {
  if (manifest.engine.deferred)
    fail(MEDNEXT_E_BACKEND, folder.u8string(), ": the engine is not built yet; run `mednext-edge build ",
         folder.u8string(), "` on the device");
  for (const Backend& backend : kBackends)
    if (manifest.target == backend.target) return backend.open(folder, manifest, options);
  fail(MEDNEXT_E_BACKEND, "found a bundle for target ", manifest.target,
       "; this library runs native, openvino, trt and trt-rtx. Export with --target openvino for a CPU");
}

}  // namespace mednext
