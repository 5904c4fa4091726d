"""Training of the decoder."""
