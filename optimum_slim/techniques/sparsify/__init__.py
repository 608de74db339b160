"""Weights become zero, in a pattern that the kernels run fast. The config lists them, and training keeps them zero."""
