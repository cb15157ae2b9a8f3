// The part of OpenVINO's C API (2023.0 and later) that is used here, loaded at run time. Its enumeration of element
// types has been renumbered between versions and is not used. tests/csrc compares these declarations with OpenVINO's.
#pragma once

#include <cstddef>
#include <cstdint>

struct ov_core;
struct ov_model;
struct ov_compiled_model;
struct ov_infer_request;
struct ov_tensor;

namespace mednext::openvino {

using Status = int;  // 0 is success

struct Version {
  const char* build;
  const char* description;
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

#define MEDNEXT_OPENVINO_FUNCTIONS(X)                                                                           \
  X(const char*, ov_get_last_err_msg, (void))                                                                   \
  X(void, ov_free, (const char*))                                                                               \
  X(Status, ov_get_openvino_version, (Version*))                                                                \
  X(void, ov_version_free, (Version*))                                                                          \
  X(Status, ov_core_create, (ov_core**))                                                                        \
  X(void, ov_core_free, (ov_core*))                                                                             \
  X(Status, ov_core_set_property, (const ov_core*, const char*, ...))                                           \
  X(Status, ov_core_get_available_devices, (const ov_core*, Devices*))                                          \
  X(void, ov_available_devices_free, (Devices*))                                                                \
  X(Status, ov_core_read_model, (const ov_core*, const char*, const char*, ov_model**))                         \
  X(void, ov_model_free, (ov_model*))                                                                           \
  X(Status, ov_model_reshape_single_input, (const ov_model*, PartialShape))                                     \
  X(Status, ov_partial_shape_create_static, (int64_t, const int64_t*, PartialShape*))                           \
  X(void, ov_partial_shape_free, (PartialShape*))                                                               \
  X(Status, ov_core_compile_model, (const ov_core*, const ov_model*, const char*, size_t, ov_compiled_model**, ...)) \
  X(void, ov_compiled_model_free, (ov_compiled_model*))                                                         \
  X(Status, ov_compiled_model_create_infer_request, (const ov_compiled_model*, ov_infer_request**))             \
  X(void, ov_infer_request_free, (ov_infer_request*))                                                           \
  X(Status, ov_infer_request_get_input_tensor_by_index, (const ov_infer_request*, size_t, ov_tensor**))         \
  X(Status, ov_infer_request_get_output_tensor_by_index, (const ov_infer_request*, size_t, ov_tensor**))        \
  X(Status, ov_infer_request_infer, (ov_infer_request*))                                                        \
  X(Status, ov_tensor_get_size, (const ov_tensor*, size_t*))                                                    \
  X(Status, ov_tensor_get_byte_size, (const ov_tensor*, size_t*))                                               \
  X(Status, ov_tensor_data, (const ov_tensor*, void**))                                                         \
  X(void, ov_tensor_free, (ov_tensor*))

// One pointer a function, of the same name.
struct Functions {
#define X(result, name, arguments) result(*name) arguments = nullptr;
  MEDNEXT_OPENVINO_FUNCTIONS(X)
#undef X
};

}  // namespace mednext::openvino
