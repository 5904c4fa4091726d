"""Quantized weights, and weights packed for oneDNN."""
