"""The vision tower's training."""
