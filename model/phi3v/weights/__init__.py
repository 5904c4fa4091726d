"""Weights in other forms than the checkpoint's: quantized, or packed for oneDNN."""
