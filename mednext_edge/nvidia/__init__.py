"""NVIDIA's two builders, TensorRT and TensorRT for RTX: what is installed, what a plan is built from, how it is built."""
