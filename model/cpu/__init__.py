"""CPU kernels, compiled at run time. They operate on arrays and do not depend on the model."""
