# libmednext_cpu: what the processor can do, and the operators of training on it. A C ABI that Python reaches through
# ctypes; no Python headers, so that one build serves every interpreter.
find_package(Threads REQUIRED)
set(cpu ${CMAKE_CURRENT_LIST_DIR}/cpu)
add_library(mednext_cpu SHARED ${CMAKE_CURRENT_LIST_DIR}/runtime/cpu_features.cpp ${cpu}/dispatch.cpp ${cpu}/ops.cpp
  ${cpu}/net.cpp
  ${cpu}/int8/block.cpp ${cpu}/int8/net.cpp ${cpu}/float/block.cpp ${cpu}/float/net.cpp)
target_include_directories(mednext_cpu PUBLIC ${CMAKE_CURRENT_LIST_DIR}/include)
target_link_libraries(mednext_cpu PRIVATE Threads::Threads)
target_compile_options(mednext_cpu PRIVATE
  $<$<CXX_COMPILER_ID:GNU,Clang,AppleClang>:-Wall -Wextra -Wpedantic>)

# One object for each instruction set; the best that the processor has is chosen at run time.
set(sets plain)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$" AND CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
  list(APPEND sets avx2 avx_vnni avx512 avx512_vnni avx512_bf16)
  target_compile_definitions(mednext_cpu PRIVATE MEDNEXT_CPU_X86)
endif()
set(flags_plain "")
set(flags_avx2 -mavx2 -mfma)
set(flags_avx_vnni ${flags_avx2} -mavxvnni)
set(flags_avx512 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma)
set(flags_avx512_vnni ${flags_avx512} -mavx512vnni -mavx512vbmi)
set(flags_avx512_bf16 ${flags_avx512_vnni} -mavx512bf16)
function(add_cpu_set set flags)
  add_library(mednext_cpu_${set} OBJECT ${ARGN})
  target_include_directories(mednext_cpu_${set} PRIVATE ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/include)
  set_target_properties(mednext_cpu_${set} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  # Optimised in any build: without it, the kernels are a hundred times slower.
  target_compile_options(mednext_cpu_${set} PRIVATE ${flags}
    $<$<CXX_COMPILER_ID:GNU,Clang,AppleClang>:-O3 -ffp-contract=fast -Wall -Wextra -Wno-psabi>
    # GCC 12 takes the undefined registers of its own headers for a mistake of theirs.
    $<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized -Wno-maybe-uninitialized>)
  target_sources(mednext_cpu PRIVATE $<TARGET_OBJECTS:mednext_cpu_${set}>)
endfunction()
foreach(set IN LISTS sets)
  add_cpu_set(${set} "${flags_${set}}" ${cpu}/isa.cpp ${cpu}/int8/isa.cpp ${cpu}/float/isa.cpp)
endforeach()
# Of AMX there are products of bytes and of bfloat16; the rest is that of the set before it.
if("avx512_bf16" IN_LIST sets)
  add_cpu_set(amx "${flags_avx512_bf16};-mamx-tile;-mamx-int8;-mamx-bf16" ${cpu}/int8/isa.cpp ${cpu}/float/isa.cpp)
endif()

install(TARGETS mednext_cpu
  LIBRARY DESTINATION mednext_edge/lib
  RUNTIME DESTINATION mednext_edge/lib)
install(FILES ${CMAKE_CURRENT_LIST_DIR}/include/mednext_cpu.h ${CMAKE_CURRENT_LIST_DIR}/include/mednext_cpu_ops.h
  ${CMAKE_CURRENT_LIST_DIR}/include/mednext_cpu_net.h
  DESTINATION mednext_edge/include)
