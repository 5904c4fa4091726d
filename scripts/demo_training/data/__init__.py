"""Pictures, and conversations about them."""
