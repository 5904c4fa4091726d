"""The decoder's training."""
