# libmednext_edge: bundles in C and C++ processes without Python. Engines are loaded at run time, so that nothing but the
# C++ standard library is linked.
if(NOT UNIX)
  message(STATUS "mednext-edge: no C++ runtime: it loads engines with dlopen, which this system does not have")
  return()
endif()
find_package(Threads REQUIRED)

set(runtime ${CMAKE_CURRENT_LIST_DIR}/runtime)
add_library(mednext_edge SHARED
  ${runtime}/affine.cpp
  ${runtime}/api.cpp
  ${runtime}/bundle.cpp
  ${runtime}/engine.cpp
  ${runtime}/engine_native.cpp
  ${runtime}/engine_openvino.cpp
  ${runtime}/image.cpp
  ${runtime}/json.cpp
  ${runtime}/library.cpp
  ${runtime}/manifest.cpp
  ${runtime}/model.cpp
  ${runtime}/normalise.cpp
  ${runtime}/recipe.cpp
  ${runtime}/resample.cpp
  ${runtime}/safetensors.cpp
  ${runtime}/sha256.cpp
  ${runtime}/sliding.cpp
  ${runtime}/spline.cpp
  ${runtime}/stream.cpp
  ${runtime}/window.cpp)
add_library(mednext_edge::mednext_edge ALIAS mednext_edge)

# TensorRT's interface is C++: it can be used only with the headers of the version that will be loaded.
set(MEDNEXT_TENSORRT_ROOT "$ENV{MEDNEXT_TENSORRT_ROOT}" CACHE PATH "Where TensorRT or TensorRT for RTX is installed")
find_path(MEDNEXT_TENSORRT_INCLUDE NvInferRuntime.h HINTS ${MEDNEXT_TENSORRT_ROOT}
  PATH_SUFFIXES include include/x86_64-linux-gnu include/aarch64-linux-gnu)
find_path(MEDNEXT_CUDA_INCLUDE cuda_runtime_api.h HINTS ${MEDNEXT_TENSORRT_ROOT}/include /usr/local/cuda/include)
if(MEDNEXT_TENSORRT_INCLUDE AND MEDNEXT_CUDA_INCLUDE)
  message(STATUS "mednext-edge: C++ runtime with OpenVINO and TensorRT (${MEDNEXT_TENSORRT_INCLUDE})")
  target_sources(mednext_edge PRIVATE ${runtime}/engine_tensorrt.cpp)
  target_include_directories(mednext_edge SYSTEM PRIVATE ${MEDNEXT_TENSORRT_INCLUDE} ${MEDNEXT_CUDA_INCLUDE})
else()
  message(STATUS "mednext-edge: C++ runtime with OpenVINO; without TensorRT, no NvInferRuntime.h")
  target_sources(mednext_edge PRIVATE ${runtime}/engine_tensorrt_absent.cpp)
endif()

target_include_directories(mednext_edge PUBLIC
  $<BUILD_INTERFACE:${CMAKE_CURRENT_LIST_DIR}/include>
  $<INSTALL_INTERFACE:mednext_edge/include>)
target_compile_features(mednext_edge PUBLIC cxx_std_17)
target_compile_definitions(mednext_edge PRIVATE
  MEDNEXT_EDGE_BUILD MEDNEXT_EDGE_VERSION="${PROJECT_VERSION}")
# Without contraction every processor rounds alike, and as NumPy does.
target_compile_options(mednext_edge PRIVATE
  $<$<CXX_COMPILER_ID:GNU,Clang,AppleClang>:-Wall -Wextra -Wpedantic -ffp-contract=off>)
# In a few pieces: the standard library's headers are most of the work.
set_target_properties(mednext_edge PROPERTIES CXX_EXTENSIONS OFF VISIBILITY_INLINES_HIDDEN ON UNITY_BUILD ON)
target_link_libraries(mednext_edge PRIVATE Threads::Threads ${CMAKE_DL_LIBS})

# find_package(mednext_edge) with CMAKE_PREFIX_PATH at the installed package; all paths are relative to the files.
include(CMakePackageConfigHelpers)
set(cmake_dir mednext_edge/lib/cmake/mednext_edge)
install(TARGETS mednext_edge EXPORT mednext_edge
  LIBRARY DESTINATION mednext_edge/lib)
install(FILES ${CMAKE_CURRENT_LIST_DIR}/include/mednext_edge.h ${CMAKE_CURRENT_LIST_DIR}/include/mednext_edge.hpp
  DESTINATION mednext_edge/include)
install(EXPORT mednext_edge NAMESPACE mednext_edge:: FILE mednext_edgeConfig.cmake DESTINATION ${cmake_dir})
write_basic_package_version_file(mednext_edgeConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/mednext_edgeConfigVersion.cmake DESTINATION ${cmake_dir})
