"""Quantization: weights and what enters their linears stand on grids of integers."""
