"""Compile the GPU kernels for several generations of GPUs, none of which need be here.

Prints what each form of each kernel takes at the official model's sizes: registers a thread, bytes
spilled to memory, shared memory, and how many of its global loads are 16 bytes wide.
"""
