"""How kernels are compiled: numba with LLVM intrinsics, and a cache on disk."""
