// A TensorRT and a CUDA driver on the processor: "device" memory is the process's own. A plan is the text `classes N`,
// and `whole` behind it for one that classifies; the network is that of fake_openvino.cpp.
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "NvInferRuntime.h"

#define API extern "C" __attribute__((visibility("default")))

namespace {

using namespace nvinfer1;

class Context : public IExecutionContext {
 public:
  Context(int64_t classes, bool whole) : classes_(classes), whole_(whole) {}
  bool setInputShape(const char*, const Dims& dims) noexcept override {
    input_ = dims;
    return dims.d[0] == 1;
  }
  Dims getTensorShape(const char* name) const noexcept override {
    Dims dims = input_;
    if (std::strcmp(name, "logits") != 0) return dims;
    dims.d[1] = classes_;
    if (whole_) dims.nbDims = 2;
    return dims;
  }
  bool setTensorAddress(const char* name, void* data) noexcept override {
    memory_[name] = static_cast<float*>(data);
    return true;
  }
  bool enqueueV3(cudaStream_t) noexcept override {
    int64_t voxels = 1;
    for (int32_t i = 2; i < input_.nbDims; ++i) voxels *= input_.d[i];
    const int64_t first = whole_ ? voxels / 2 : 0, count = whole_ ? 1 : voxels;
    for (int64_t c = 0; c < classes_; ++c)
      for (int64_t i = 0; i < count; ++i) {
        const float d = memory_["image"][first + i] - static_cast<float>(c);
        memory_["logits"][c * count + i] = -d * d;
      }
    return true;
  }

 private:
  int64_t classes_;
  bool whole_;
  Dims input_{};
  std::map<std::string, float*> memory_;
};

class CudaEngine : public ICudaEngine {
 public:
  CudaEngine(int64_t classes, bool whole) : classes_(classes), whole_(whole) {}
  int32_t getNbIOTensors() const noexcept override { return 2; }
  const char* getIOTensorName(int32_t index) const noexcept override { return index == 0 ? "image" : "logits"; }
  TensorIOMode getTensorIOMode(const char* name) const noexcept override {
    return std::strcmp(name, "image") == 0 ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
  }
  DataType getTensorDataType(const char*) const noexcept override { return DataType::kFLOAT; }
  IExecutionContext* createExecutionContext() noexcept override { return new Context(classes_, whole_); }

 private:
  int64_t classes_;
  bool whole_;
};

class Runtime : public IRuntime {
 public:
  explicit Runtime(ILogger* logger) : logger_(logger) {}
  ICudaEngine* deserializeCudaEngine(const void* blob, std::size_t size) noexcept override {
    const std::string plan(static_cast<const char*>(blob), size);
    if (plan.rfind("classes ", 0) == 0)
      return new CudaEngine(std::atoll(plan.c_str() + 8), plan.find("whole") != std::string::npos);
    logger_->log(ILogger::Severity::kERROR, "the plan is of another version");
    return nullptr;
  }

 private:
  ILogger* logger_;
};

}  // namespace

API void* createInferRuntime_INTERNAL(void* logger, int32_t) noexcept {
  return static_cast<IRuntime*>(new Runtime(static_cast<ILogger*>(logger)));
}
API int32_t getInferLibVersion() noexcept {
  const char* version = std::getenv("FAKE_TENSORRT_VERSION");
  return version ? std::atoi(version) : NV_TENSORRT_VERSION;
}

API int cuInit(unsigned) { return 0; }
API int cuGetErrorString(int, const char** text) {
  *text = "the fake was told to fail";
  return 0;
}
API int cuDeviceGet(int* device, int index) {
  *device = index;
  return index == 0 ? 0 : 101;
}
API int cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 75 ? 8 : 9;
  return 0;
}
API int cuDevicePrimaryCtxRetain(void** context, int) {
  static int one;
  *context = &one;
  return 0;
}
API int cuDevicePrimaryCtxRelease_v2(int) { return 0; }
API int cuCtxPushCurrent_v2(void*) { return 0; }
API int cuCtxPopCurrent_v2(void**) { return 0; }
API int cuMemAlloc_v2(unsigned long long* memory, size_t bytes) {
  *memory = reinterpret_cast<unsigned long long>(std::malloc(bytes));
  return 0;
}
API int cuMemFree_v2(unsigned long long memory) {
  std::free(reinterpret_cast<void*>(memory));
  return 0;
}
API int cuMemcpyHtoDAsync_v2(unsigned long long to, const void* from, size_t bytes, void*) {
  std::memcpy(reinterpret_cast<void*>(to), from, bytes);
  return 0;
}
API int cuMemcpyDtoHAsync_v2(void* to, unsigned long long from, size_t bytes, void*) {
  std::memcpy(to, reinterpret_cast<const void*>(from), bytes);
  return 0;
}
API int cuStreamCreate(void** stream, unsigned) {
  *stream = std::malloc(1);
  return 0;
}
API int cuStreamSynchronize(void*) { return 0; }
API int cuStreamDestroy_v2(void* stream) {
  std::free(stream);
  return 0;
}
