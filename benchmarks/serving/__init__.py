"""Parts of `benchmarks/serving_soak.py`: a service as a process of its own, its clients, and what became of each."""
