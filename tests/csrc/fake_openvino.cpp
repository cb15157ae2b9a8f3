// OpenVINO's C API around a network that is one line long, so that sanitizers see this project's code alone.
//
// The text of model.xml says what the network does: `classes N`, and maybe `nan`, `fail`, `whole` (it classifies),
// `regions`, or `slow N` (milliseconds a patch). Its logits are -(x - c)^2 for class c and the first channel x, of a
// classification the middle voxel of it, x - c for region c; a single one is x - 1. FAKE_OPENVINO_TRACE names a file that every patch is appended to as it
// arrived.
#include <chrono>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

struct Version {
  const char *build, *description;
};
struct Dimension {
  int64_t min, max;
};
struct PartialShape {
  Dimension rank;
  Dimension* dims;
};
struct Devices {
  char** names;
  size_t size;
};
struct ov_core {
  int unused = 0;
};
struct ov_model {
  int64_t classes = 1, slow = 0;
  bool nan = false, fail = false, whole = false, regions = false;
  std::vector<int64_t> shape;
};
struct ov_tensor {
  std::vector<float>* data;
};
struct ov_compiled_model {
  ov_model model;
};
struct ov_infer_request {
  ov_model model;
  std::vector<float> input, output;
};

API const char* ov_get_last_err_msg() { return "the fake was told to fail"; }
API void ov_free(const char*) {}
API int ov_get_openvino_version(Version* version) {
  *version = {"0.0.0-fake", "fake"};
  return 0;
}
API void ov_version_free(Version*) {}
API int ov_core_create(ov_core** core) {
  *core = new ov_core;
  return 0;
}
API void ov_core_free(ov_core* core) { delete core; }
API int ov_core_set_property(const ov_core*, const char*, ...) { return 0; }
API int ov_core_get_available_devices(const ov_core*, Devices* devices) {
  static char name[] = "CPU";
  static char* names[] = {name};
  *devices = {names, 1};
  return 0;
}
API void ov_available_devices_free(Devices*) {}
API int ov_core_read_model(const ov_core*, const char* path, const char*, ov_model** model) {
  std::ifstream file(path);
  if (!file) return -1;
  *model = new ov_model;
  for (std::string word; file >> word;) {
    if (word == "classes") file >> (*model)->classes;
    if (word == "slow") file >> (*model)->slow;
    (*model)->nan |= word == "nan";
    (*model)->fail |= word == "fail";
    (*model)->whole |= word == "whole";
    (*model)->regions |= word == "regions";
  }
  return 0;
}
API void ov_model_free(ov_model* model) { delete model; }
API int ov_partial_shape_create_static(int64_t rank, const int64_t* dims, PartialShape* shape) {
  shape->rank = {rank, rank};
  shape->dims = new Dimension[static_cast<size_t>(rank)];
  for (int64_t i = 0; i < rank; ++i) shape->dims[i] = {dims[i], dims[i]};
  return 0;
}
API void ov_partial_shape_free(PartialShape* shape) { delete[] shape->dims; }
API int ov_model_reshape_single_input(const ov_model* model, PartialShape shape) {
  auto& sizes = const_cast<ov_model*>(model)->shape;
  sizes.clear();
  for (int64_t i = 0; i < shape.rank.max; ++i) sizes.push_back(shape.dims[i].max);
  return 0;
}
API int ov_core_compile_model(const ov_core*, const ov_model* model, const char* device, size_t,
                              ov_compiled_model** compiled, ...) {
  if (std::strcmp(device, "CPU") != 0) return -1;
  *compiled = new ov_compiled_model{*model};
  return 0;
}
API void ov_compiled_model_free(ov_compiled_model* compiled) { delete compiled; }
API int ov_compiled_model_create_infer_request(const ov_compiled_model* compiled, ov_infer_request** request) {
  int64_t voxels = 1;
  for (size_t i = 2; i < compiled->model.shape.size(); ++i) voxels *= compiled->model.shape[i];
  *request = new ov_infer_request{compiled->model, {}, {}};
  (*request)->input.resize(static_cast<size_t>(voxels * compiled->model.shape[1]));
  (*request)->output.resize(static_cast<size_t>((compiled->model.whole ? 1 : voxels) * compiled->model.classes));
  return 0;
}
API void ov_infer_request_free(ov_infer_request* request) { delete request; }
API int ov_infer_request_get_input_tensor_by_index(const ov_infer_request* request, size_t, ov_tensor** tensor) {
  *tensor = new ov_tensor{&const_cast<ov_infer_request*>(request)->input};
  return 0;
}
API int ov_infer_request_get_output_tensor_by_index(const ov_infer_request* request, size_t, ov_tensor** tensor) {
  *tensor = new ov_tensor{&const_cast<ov_infer_request*>(request)->output};
  return 0;
}
API int ov_infer_request_infer(ov_infer_request* request) {
  if (request->model.fail) return -1;
  if (const char* trace = std::getenv("FAKE_OPENVINO_TRACE"))
    std::ofstream(trace, std::ios::binary | std::ios::app)
        .write(reinterpret_cast<const char*>(request->input.data()),
               static_cast<std::streamsize>(request->input.size() * sizeof(float)));
  std::this_thread::sleep_for(std::chrono::milliseconds(request->model.slow));
  const size_t voxels = request->output.size() / static_cast<size_t>(request->model.classes);
  const size_t first = request->model.whole ? request->input.size() / static_cast<size_t>(request->model.shape[1]) / 2 : 0;
  for (int64_t c = 0; c < request->model.classes; ++c)
    for (size_t i = 0; i < voxels; ++i) {
      const float d = request->input[first + i] - static_cast<float>(c);
      request->output[static_cast<size_t>(c) * voxels + i] =
          request->model.classes == 1 ? d - 1 : request->model.regions ? d : -d * d;
    }
  if (request->model.nan) request->output.back() = std::strtof("nan", nullptr);
  return 0;
}
API int ov_tensor_get_size(const ov_tensor* tensor, size_t* size) {
  *size = tensor->data->size();
  return 0;
}
API int ov_tensor_get_byte_size(const ov_tensor* tensor, size_t* size) {
  *size = tensor->data->size() * sizeof(float);
  return 0;
}
API int ov_tensor_data(const ov_tensor* tensor, void** data) {
  *data = tensor->data->data();
  return 0;
}
API void ov_tensor_free(ov_tensor* tensor) { delete tensor; }
