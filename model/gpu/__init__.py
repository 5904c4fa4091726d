"""GPU kernels, written in Triton. They operate on tensors and do not depend on the model."""
