// The one type of CUDA's header that TensorRT's interface names.
#pragma once
typedef struct CUstream_st* cudaStream_t;
