"""Parts of `benchmarks/edge_runtime.py`; the tests of the C++ runtime use them too."""
