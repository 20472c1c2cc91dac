"""Triton kernels for NVIDIA and AMD GPUs. `backend` is the module that the dispatcher loads, on first use."""
