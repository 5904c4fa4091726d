"""What the trained model is worth, asked over HTTP."""
