"""What a step runs on the device: vision tower, decoder, CUDA graphs."""
