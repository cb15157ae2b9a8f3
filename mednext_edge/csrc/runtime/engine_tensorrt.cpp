// TensorRT or TensorRT for RTX, whichever headers this library was built with; its library and the CUDA driver are
// loaded at run time. Not yet run on hardware.
#include <NvInferRuntime.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <fstream>
#include <limits>
#include <mutex>
#include <string>
#include <vector>

#include "engine.h"
#include "error.h"
#include "library.h"
#include "volume.h"

namespace mednext {
namespace {

#ifdef TRT_MAJOR_RTX
constexpr const char *kTarget = "trt-rtx", *kName = "TensorRT for RTX", *kStem = "libtensorrt_rtx.so";
constexpr const char* kBeside = "tensorrt_rtx_libs";
#else
constexpr const char *kTarget = "trt", *kName = "TensorRT", *kStem = "libnvinfer.so";
constexpr const char* kBeside = "tensorrt_libs";
#endif
constexpr int kComputeCapabilityMajor = 75, kComputeCapabilityMinor = 76;  // CU_DEVICE_ATTRIBUTE_...

// The part of the CUDA driver's C interface that is used here; 0 is success.
struct Cuda {
  int (*cuInit)(unsigned);
  int (*cuGetErrorString)(int, const char**);
  int (*cuDeviceGet)(int*, int);
  int (*cuDeviceGetAttribute)(int*, int, int);
  int (*cuDevicePrimaryCtxRetain)(void**, int);
  int (*cuDevicePrimaryCtxRelease_v2)(int);
  int (*cuCtxPushCurrent_v2)(void*);
  int (*cuCtxPopCurrent_v2)(void**);
  int (*cuMemAlloc_v2)(unsigned long long*, size_t);
  int (*cuMemFree_v2)(unsigned long long);
  int (*cuMemcpyHtoDAsync_v2)(unsigned long long, const void*, size_t, void*);
  int (*cuMemcpyDtoHAsync_v2)(void*, unsigned long long, size_t, void*);
  int (*cuStreamCreate)(void**, unsigned);
  int (*cuStreamSynchronize)(void*);
  int (*cuStreamDestroy_v2)(void*);

  void check(int status, const char* what, mednext_status failure) const {
    const char* reason = nullptr;
    if (status != 0) cuGetErrorString(status, &reason);
    if (status != 0) fail(failure, "CUDA cannot ", what, ": ", reason ? reason : std::to_string(status));
  }
};

const Cuda& cuda() {
  static const Cuda functions = [] {
    const Library library = Library::find({"The CUDA driver", "MEDNEXT_CUDA_LIBRARY", "libcuda.so", {},
                                           "Install the NVIDIA driver"});
    Cuda out;
#define X(name) library.load(out.name, #name)
    X(cuInit), X(cuGetErrorString), X(cuDeviceGet), X(cuDeviceGetAttribute), X(cuDevicePrimaryCtxRetain);
    X(cuDevicePrimaryCtxRelease_v2), X(cuCtxPushCurrent_v2), X(cuCtxPopCurrent_v2), X(cuMemAlloc_v2), X(cuMemFree_v2);
    X(cuMemcpyHtoDAsync_v2), X(cuMemcpyDtoHAsync_v2), X(cuStreamCreate), X(cuStreamSynchronize);
    X(cuStreamDestroy_v2);
#undef X
    out.check(out.cuInit(0), "start", MEDNEXT_E_BACKEND);
    return out;
  }();
  return functions;
}

// Keeps TensorRT's errors, which it tells nobody else.
class Log : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    if (severity > Severity::kERROR) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (errors_.size() < 2000) errors_ += std::string(errors_.empty() ? "" : "; ") + message;
  }
  std::string errors() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return errors_.empty() ? "no reason" : errors_;
  }

 private:
  std::mutex mutex_;
  std::string errors_;
};

struct TensorRtLibrary {
  void* (*create_runtime)(void*, int32_t) = nullptr;
  int32_t (*version)() = nullptr;
};

const TensorRtLibrary& tensorrt() {
  static const TensorRtLibrary functions = [] {
    const Library library =
        Library::find({kName, "MEDNEXT_TENSORRT_LIBRARY", kStem, {kBeside}, "Install it in the version of the plan"});
    TensorRtLibrary out;
    library.load(out.create_runtime, "createInferRuntime_INTERNAL");
    library.load(out.version, "getInferLibVersion");
    // Objects of another version may have another layout.
    if (out.version() != NV_TENSORRT_VERSION)
      fail(MEDNEXT_E_BACKEND, library.path().u8string(), " is version ", out.version(), "; this libmednext_edge was ",
           "built with the headers of ", NV_TENSORRT_VERSION, ". Build it again with those of the installed version");
    return out;
  }();
  return functions;
}

// A GPU's primary context and stream, current as long as a Use lives.
class Device {
 public:
  explicit Device(int index) {
    check(cuda_.cuDeviceGet(&device_, index), "find that GPU");
    check(cuda_.cuDevicePrimaryCtxRetain(&context_, device_), "open the GPU");
  }
  ~Device() { cuda_.cuDevicePrimaryCtxRelease_v2(device_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  std::string capability() const {
    int major = 0, minor = 0;
    check(cuda_.cuDeviceGetAttribute(&major, kComputeCapabilityMajor, device_), "tell its architecture");
    check(cuda_.cuDeviceGetAttribute(&minor, kComputeCapabilityMinor, device_), "tell its architecture");
    return std::to_string(major) + "." + std::to_string(minor);
  }
  void check(int status, const char* what, mednext_status failure = MEDNEXT_E_BACKEND) const {
    cuda_.check(status, what, failure);
  }
  const Cuda& functions() const { return cuda_; }

  class Use {
   public:
    explicit Use(const Device& device) : cuda_(device.cuda_) {
      device.check(cuda_.cuCtxPushCurrent_v2(device.context_), "use the GPU");
    }
    ~Use() {
      void* context = nullptr;
      cuda_.cuCtxPopCurrent_v2(&context);
    }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    const Cuda& cuda_;
  };

 private:
  const Cuda& cuda_ = cuda();
  int device_ = 0;
  void* context_ = nullptr;
};

std::string choose_plan(const std::filesystem::path& folder, const Manifest& manifest, const std::string& here) {
  std::vector<Manifest::Plan> plans = manifest.engine.plans;
  if (plans.empty()) plans.push_back({manifest.engine.arch, manifest.engine.file});
  std::string known;
  for (const auto& plan : plans) {
    if (plan.arch == here) return plan.file;
    known += (known.empty() ? "" : ", ") + plan.arch;
  }
  fail(MEDNEXT_E_BACKEND, "this GPU has compute capability ", here, "; ", folder.u8string(), " has plans for ", known,
       ". Run `mednext-edge build ", folder.u8string(), " --gpu-arch ", here, "`");
}

class TensorRt : public Engine {
 public:
  TensorRt(const std::filesystem::path& folder, const Manifest& manifest, int device)
      : library_(tensorrt()), device_(device) {
    const Device::Use use(device_);
    try {
      open(folder, manifest);
    } catch (...) {
      release();
      throw;
    }
  }
  ~TensorRt() override {
    const Device::Use use(device_);
    release();
  }

  float* input() override { return source_.data(); }

  const float* run() override {
    const Device::Use use(device_);
    const Cuda& gpu = device_.functions();
    const auto check = [&](int status, const char* what) { device_.check(status, what, MEDNEXT_E_ENGINE); };
    check(gpu.cuMemcpyHtoDAsync_v2(memory_[0], source_.data(), source_.size() * sizeof(float), stream_), "upload");
    if (!context_->enqueueV3(static_cast<cudaStream_t>(stream_)))
      fail(MEDNEXT_E_ENGINE, provider(), " failed to run a patch: ", log_.errors());
    check(gpu.cuMemcpyDtoHAsync_v2(logits_.data(), memory_[1], logits_.size() * sizeof(float), stream_), "download");
    check(gpu.cuStreamSynchronize(stream_), "finish a patch");
    return logits_.data();
  }

  std::string provider() const override { return std::string(kTarget) + " " + std::to_string(library_.version()); }

 private:
  void open(const std::filesystem::path& folder, const Manifest& manifest) {
    const auto file = folder / std::filesystem::u8path(choose_plan(folder, manifest, device_.capability()));
    std::vector<char> plan(static_cast<size_t>(std::filesystem::file_size(file)));
    if (!std::ifstream(file, std::ios::binary).read(plan.data(), static_cast<std::streamsize>(plan.size())))
      fail(MEDNEXT_E_BACKEND, file.u8string(), " cannot be read");
    const auto made = [&](const void* object, const char* what) {
      if (!object) fail(MEDNEXT_E_BACKEND, kName, " cannot ", what, " ", file.u8string(), ": ", log_.errors(),
                        ". Run `mednext-edge build ", folder.u8string(), "` on this device");
    };
    runtime_ = static_cast<nvinfer1::IRuntime*>(library_.create_runtime(&log_, NV_TENSORRT_VERSION));
    made(runtime_, "start for");
    engine_ = runtime_->deserializeCudaEngine(plan.data(), plan.size());
    made(engine_, "load");
    context_ = engine_->createExecutionContext();
    made(context_, "start");
    const Cuda& gpu = device_.functions();
    device_.check(gpu.cuStreamCreate(&stream_, 1), "make a stream");  // 1: does not wait for the default stream
    bind(manifest, nvinfer1::TensorIOMode::kINPUT, manifest.channels, source_, memory_[0]);
    bind(manifest, nvinfer1::TensorIOMode::kOUTPUT, manifest.outputs, logits_, memory_[1]);
  }

  // The one input or output: its memory here and on the GPU.
  void bind(const Manifest& manifest, nvinfer1::TensorIOMode mode, int64_t channels, std::vector<float>& host,
            unsigned long long& memory) {
    const char* name = nullptr;
    int found = 0;
    for (int32_t i = 0; i < engine_->getNbIOTensors(); ++i) {
      const char* const candidate = engine_->getIOTensorName(i);
      if (engine_->getTensorIOMode(candidate) == mode) name = candidate, ++found;
    }
    if (found != 1 || engine_->getTensorDataType(name) != nvinfer1::DataType::kFLOAT)
      fail(MEDNEXT_E_BACKEND, "the plan has ", found, " inputs or outputs of a kind; expected one, of float32");
    nvinfer1::Dims shape{};
    for (const int64_t size : {int64_t{1}, channels}) shape.d[shape.nbDims++] = static_cast<int32_t>(size);
    const bool spatial = mode == nvinfer1::TensorIOMode::kINPUT || !manifest.classifies;
    for (int k = 3 - manifest.spatial_dims; spatial && k < 3; ++k)
      shape.d[shape.nbDims++] = static_cast<int32_t>(manifest.patch[k]);
    if (mode == nvinfer1::TensorIOMode::kINPUT && !context_->setInputShape(name, shape))
      fail(MEDNEXT_E_BACKEND, "the plan does not take the patch of its manifest: ", log_.errors());
    const nvinfer1::Dims actual = context_->getTensorShape(name);
    if (actual.nbDims != shape.nbDims || !std::equal(shape.d, shape.d + shape.nbDims, actual.d))
      fail(MEDNEXT_E_BACKEND, "the plan's tensor ", name, " does not have the shape that its manifest says");
    host.resize(static_cast<size_t>(spatial ? channels * voxels(manifest.patch) : channels));
    device_.check(device_.functions().cuMemAlloc_v2(&memory, host.size() * sizeof(float)), "find memory");
    if (!context_->setTensorAddress(name, reinterpret_cast<void*>(memory)))
      fail(MEDNEXT_E_BACKEND, kName, " does not take the memory of ", name, ": ", log_.errors());
  }

  // Each before what it was made from.
  void release() noexcept {
    delete context_;
    delete engine_;
    delete runtime_;
    for (const unsigned long long memory : memory_)
      if (memory) device_.functions().cuMemFree_v2(memory);
    if (stream_) device_.functions().cuStreamDestroy_v2(stream_);
  }

  const TensorRtLibrary& library_;
  Log log_;
  Device device_;
  nvinfer1::IRuntime* runtime_ = nullptr;
  nvinfer1::ICudaEngine* engine_ = nullptr;
  nvinfer1::IExecutionContext* context_ = nullptr;
  void* stream_ = nullptr;
  std::array<unsigned long long, 2> memory_{};
  std::vector<float> source_, logits_;
};

// `cuda` or `cuda:1`.
int device_index(const std::string& device) {
  if (device.empty() || device == "cuda") return 0;
  const bool numbered = device.size() == 6 && device.compare(0, 5, "cuda:") == 0 && device[5] >= '0' && device[5] <= '9';
  if (!numbered) fail(MEDNEXT_E_ARGUMENT, "found the device ", device, "; expected cuda, or cuda:0 to cuda:9");
  return device[5] - '0';
}

}  // namespace

std::unique_ptr<Engine> open_tensorrt(const std::filesystem::path& folder, const Manifest& manifest,
                                      const EngineOptions& options) {
  if (manifest.target != kTarget)
    fail(MEDNEXT_E_BACKEND, "found a bundle for target ", manifest.target, "; this libmednext_edge was built with the ",
         "headers of ", kName, ", for target ", kTarget, ". Export with --target ", kTarget, " or --target openvino");
  return std::make_unique<TensorRt>(folder, manifest, device_index(options.device));
}

}  // namespace mednext
