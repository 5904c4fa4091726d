"""Runs a step on the device: vision tower, decoder, CUDA graphs."""
