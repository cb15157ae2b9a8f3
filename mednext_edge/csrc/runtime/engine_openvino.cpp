// OpenVINO through its C API, loaded at run time: one build serves every version that is installed.
#include <array>
#include <vector>

#include "engine.h"
#include "error.h"
#include "library.h"
#include "openvino_c.h"
#include "volume.h"

namespace mednext {
namespace {

using openvino::Functions;
using openvino::Status;

Functions load_functions() {
  const Library library = Library::find({"OpenVINO", "MEDNEXT_OPENVINO_LIBRARY", "libopenvino_c.so",
                                         {"openvino/libs"}, "Install it (`pip install openvino`)"});
  Functions ov;
#define X(result, name, arguments) library.load(ov.name, #name);
  MEDNEXT_OPENVINO_FUNCTIONS(X)
#undef X
  return ov;
}

const Functions& functions() {
  static const Functions ov = load_functions();  // tried again by the next call where it throws
  return ov;
}

// An object of OpenVINO that is freed with this one.
template <class T>
class Owned {
 public:
  explicit Owned(void (*release)(T*)) : release_(release) {}
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() {
    if (object_) release_(object_);
  }
  T** out() { return &object_; }
  T* get() const { return object_; }

 private:
  void (*release_)(T*);
  T* object_ = nullptr;
};

// OpenVINO computes an FP32 graph in bfloat16 on CPUs that have it unless told otherwise.
const char* precision_hint(const std::string& precision) {
  if (precision == "fp16") return "f16";
  if (precision == "bf16" || precision == "int8-bf16") return "bf16";
  return "f32";
}

class OpenVino : public Engine {
 public:
  OpenVino(const std::filesystem::path& folder, const Manifest& manifest, const EngineOptions& options)
      : ov_(functions()), device_(options.device.empty() ? "CPU" : options.device) {
    openvino::Version version{};
    if (ov_.ov_get_openvino_version(&version) == 0) {
      const std::string build = version.build ? version.build : "";
      provider_ = "openvino " + build.substr(0, build.find('-'));
      ov_.ov_version_free(&version);
    }
    check(ov_.ov_core_create(core_.out()), "start");
    // Its weights would else be read from the file while patches run: a file that is changed or cut then would change
    // the labels, or end the process.
    check(ov_.ov_core_set_property(core_.get(), "", "ENABLE_MMAP", "NO"), "be kept from mapping files");
    const std::string file = (folder / std::filesystem::u8path(manifest.engine.file)).u8string();
    Owned<ov_model> model(ov_.ov_model_free);
    check(ov_.ov_core_read_model(core_.get(), file.c_str(), nullptr, model.out()), "read the model");
    reshape(model.get(), manifest);
    compile(model.get(), manifest, options);
    check(ov_.ov_compiled_model_create_infer_request(compiled_.get(), request_.out()), "make a request");
    check(ov_.ov_infer_request_get_input_tensor_by_index(request_.get(), 0, input_.out()), "give its input");
    input_data_ = data(input_.get(), manifest.channels * voxels(manifest.patch), "input");
    logits_ = manifest.logits();
  }

  float* input() override { return input_data_; }

  const float* run() override {
    if (ov_.ov_infer_request_infer(request_.get()) != 0)
      fail(MEDNEXT_E_ENGINE, provider_, " failed to run a patch: ", ov_.ov_get_last_err_msg());
    // Asked for after every run, since the engine may put its output elsewhere.
    Owned<ov_tensor> output(ov_.ov_tensor_free);
    check(ov_.ov_infer_request_get_output_tensor_by_index(request_.get(), 0, output.out()), "give its output");
    return data(output.get(), logits_, "output");
  }

  std::string provider() const override { return provider_; }

 private:
  void check(Status status, const char* what) const {
    if (status == 0) return;
    const char* message = ov_.ov_get_last_err_msg();
    fail(MEDNEXT_E_BACKEND, provider_, " cannot ", what, " (status ", status, "): ", message ? message : "no reason");
  }

  void reshape(ov_model* model, const Manifest& manifest) const {
    std::vector<int64_t> shape{1, manifest.channels};
    shape.insert(shape.end(), manifest.patch.end() - manifest.spatial_dims, manifest.patch.end());
    openvino::PartialShape fixed{};
    check(ov_.ov_partial_shape_create_static(static_cast<int64_t>(shape.size()), shape.data(), &fixed), "make a shape");
    const Status status = ov_.ov_model_reshape_single_input(model, fixed);
    ov_.ov_partial_shape_free(&fixed);
    check(status, "reshape the model to its patch");
  }

  void compile(ov_model* model, const Manifest& manifest, const EngineOptions& options) {
    const bool cpu = device_ == "CPU";
    const std::string threads = std::to_string(options.threads);
    // Pairs of key and value; the number says how many of them are read.
    const size_t arguments = !cpu ? 2 : options.threads == 0 ? 4 : 6;
    const auto attempt = [&](const char* hint) {
      return ov_.ov_core_compile_model(core_.get(), model, device_.c_str(), arguments, compiled_.out(),
                                       "PERFORMANCE_HINT", "LATENCY", "INFERENCE_PRECISION_HINT", hint,
                                       "INFERENCE_NUM_THREADS", threads.c_str());
    };
    if (attempt(precision_hint(manifest.precision)) == 0) return;
    // Some INT8 layers have no kernel with bfloat16 beside them.
    if (cpu && manifest.precision == "int8-bf16" && attempt("f32") == 0) {
      provider_ += ", which has no bfloat16 kernels for this graph";
      return;
    }
    const char* message = ov_.ov_get_last_err_msg();
    const std::string why = message ? message : "no reason";
    fail(MEDNEXT_E_BACKEND, provider_, " cannot compile this model for ", device_, ": ", why,
         "\nThis machine has: ", devices());
  }

  std::string devices() const {
    openvino::Devices found{};
    if (ov_.ov_core_get_available_devices(core_.get(), &found) != 0) return "no device that OpenVINO could name";
    std::string names;
    for (size_t i = 0; i < found.size; ++i) names += (i ? ", " : "") + std::string(found.names[i]);
    ov_.ov_available_devices_free(&found);
    return names.empty() ? "no device" : names;
  }

  // Memory of a tensor that must hold so many floats.
  float* data(const ov_tensor* tensor, int64_t count, const char* name) const {
    size_t size = 0, bytes = 0;
    void* memory = nullptr;
    check(ov_.ov_tensor_get_size(tensor, &size), "tell a size");
    check(ov_.ov_tensor_get_byte_size(tensor, &bytes), "tell a size");
    if (size != static_cast<size_t>(count) || bytes != size * sizeof(float))
      fail(MEDNEXT_E_ENGINE, "the engine's ", name, " has ", size, " values in ", bytes, " bytes; expected ", count,
           " of float32, as its manifest says");
    check(ov_.ov_tensor_data(tensor, &memory), "give its memory");
    return static_cast<float*>(memory);
  }

  const Functions& ov_;
  std::string device_, provider_ = "openvino";
  Owned<ov_core> core_{ov_.ov_core_free};
  Owned<ov_compiled_model> compiled_{ov_.ov_compiled_model_free};
  Owned<ov_infer_request> request_{ov_.ov_infer_request_free};
  Owned<ov_tensor> input_{ov_.ov_tensor_free};
  float* input_data_ = nullptr;
  int64_t logits_ = 0;
};

}  // namespace

std::unique_ptr<Engine> open_openvino(const std::filesystem::path& folder, const Manifest& manifest,
                                      const EngineOptions& options) {
  return std::make_unique<OpenVino>(folder, manifest, options);
}

}  // namespace mednext
