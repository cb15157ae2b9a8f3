# libmednext_cuda: for the GPU that is present, or as the environment says.
#
#   MEDNEXT_CUDA        ON builds without a GPU too, OFF never; unset, for the GPUs that are present
#   MEDNEXT_CUDA_ARCHS  compute capabilities, "80;90" or "8.0 9.0"; unset, those present, or the list below
#
# The kernels need compute capability 8.0 (asynchronous copies). Machine code is made for every one on
# the list, and PTX for the lowest, which newer GPUs compile when they first load it.
set(DEFAULT_ARCHS 80 86 87 89 90 120)
set(LOWEST_ARCH 80)

include(CheckLanguage)
if("$ENV{MEDNEXT_CUDA}" STREQUAL "OFF")
  message(STATUS "mednext-edge: no CUDA kernels: MEDNEXT_CUDA is OFF")
  return()
endif()
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(STATUS "mednext-edge: no CUDA kernels: no nvcc")
  return()
endif()

string(REGEX MATCHALL "[0-9.]+[a-z]?" archs "$ENV{MEDNEXT_CUDA_ARCHS}")
list(TRANSFORM archs REPLACE "\\." "")
if(NOT archs)
  # The query that nvcc itself makes for -arch=native: "90" or "86,90"; it fails without a GPU or a driver.
  get_filename_component(toolkit ${CMAKE_CUDA_COMPILER} REALPATH)
  get_filename_component(toolkit ${toolkit} DIRECTORY)
  execute_process(COMMAND ${toolkit}/__nvcc_device_query OUTPUT_VARIABLE present ERROR_QUIET RESULT_VARIABLE failed)
  if(NOT "${failed}" STREQUAL "0")
    execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
      OUTPUT_VARIABLE present ERROR_QUIET RESULT_VARIABLE failed)
  endif()
  if("${failed}" STREQUAL "0")
    string(REPLACE "." "" present "${present}")
    string(REGEX MATCHALL "[0-9]+" present "${present}")
    foreach(arch IN LISTS present)
      if(arch GREATER_EQUAL LOWEST_ARCH)
        list(APPEND archs ${arch})
      endif()
    endforeach()
  endif()
endif()
if(NOT archs AND NOT "$ENV{MEDNEXT_CUDA}")
  message(STATUS "mednext-edge: no CUDA kernels: no GPU of compute capability 8.0 or newer (MEDNEXT_CUDA=ON builds them)")
  return()
endif()
if(NOT archs)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch OUTPUT_VARIABLE known)
  foreach(arch IN LISTS DEFAULT_ARCHS)
    if("${known}" MATCHES "compute_${arch}[^0-9]")
      list(APPEND archs ${arch})
    endif()
  endforeach()
endif()
list(REMOVE_DUPLICATES archs)
list(SORT archs COMPARE NATURAL)
message(STATUS "mednext-edge: CUDA kernels for ${archs}")

# The front end makes the same PTX of these kernels for 8.0 to 9.0, and takes longer than the assembler: it runs once for
# all of them, and once for every architecture beyond or with features of its own.
set(codes "")
foreach(arch IN LISTS archs)
  if(NOT DEFINED virtual OR NOT arch MATCHES "^[89][0-9]$")
    set(virtual ${arch})
  endif()
  list(APPEND codes -gencode=arch=compute_${virtual},code=sm_${arch})
endforeach()
list(GET archs 0 lowest)
list(APPEND codes -gencode=arch=compute_${lowest},code=compute_${lowest})
set(CMAKE_CUDA_ARCHITECTURES OFF) # said by the options above
enable_language(CUDA)

set(csrc ${CMAKE_CURRENT_LIST_DIR})
add_library(mednext_cuda SHARED
  ${csrc}/kernels/dwconv3d_weight.cu # the longest first
  ${csrc}/kernels/dwconv3d_direct.cu
  ${csrc}/kernels/dwconv3d_banded.cu
  ${csrc}/kernels/dwconv3d_transposed.cu
  ${csrc}/kernels/dwconv3d_int8.cu
  ${csrc}/kernels/ffn.cu
  ${csrc}/kernels/dwconv3d_general.cu
  ${csrc}/runtime/cuda_api.cu)
target_include_directories(mednext_cuda PUBLIC ${csrc}/include)
target_compile_options(mednext_cuda PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${codes}>")
# cudart is linked in, so that the library loads on machines without a toolkit; its symbols stay inside.
set_target_properties(mednext_cuda PROPERTIES
  CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_VISIBILITY_PRESET hidden CUDA_RUNTIME_LIBRARY Static)
if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  target_link_options(mednext_cuda PRIVATE -Wl,--exclude-libs,ALL)
endif()
install(TARGETS mednext_cuda
  LIBRARY DESTINATION mednext_edge/lib
  RUNTIME DESTINATION mednext_edge/lib)
install(FILES ${csrc}/include/mednext_cuda.h DESTINATION mednext_edge/include)
