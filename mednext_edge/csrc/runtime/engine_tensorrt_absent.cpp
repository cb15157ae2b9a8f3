// Stands in for engine_tensorrt.cpp where TensorRT's headers were not there when this library was built: its C++
// interface is bound to them, so that calling into it without would be a guess at the layout of its objects.
#include "engine.h"
#include "error.h"

namespace mednext {

std::unique_ptr<Engine> open_tensorrt(const std::filesystem::path& folder, const Manifest& manifest,
                                      const EngineOptions&) {
  fail(MEDNEXT_E_BACKEND, folder.u8string(), " is for target ", manifest.target,
       "; this libmednext_edge was built without TensorRT. Build it again on a machine with NvInferRuntime.h "
       "(-DMEDNEXT_TENSORRT_ROOT=...), or export with --target openvino");
}

}  // namespace mednext
