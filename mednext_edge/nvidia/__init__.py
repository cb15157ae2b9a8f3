"""NVIDIA's two builders, TensorRT and TensorRT for RTX: what is installed, what they are told, how they build."""
