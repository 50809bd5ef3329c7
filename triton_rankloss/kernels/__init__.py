"""Triton kernels, one file per family; imported only where a kernel is about to run."""
