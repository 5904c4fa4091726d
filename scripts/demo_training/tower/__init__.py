"""Training of the vision tower."""
