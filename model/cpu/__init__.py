"""Kernels for CPUs, compiled at run time. They know arrays and sizes, nothing of models."""
