"""Compiles kernels with numba and LLVM intrinsics, and caches them on disk."""
