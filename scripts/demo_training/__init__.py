"""Training and evaluation of the demo model, on generated pictures and questions."""
