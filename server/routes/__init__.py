"""Routes: each takes a request apart, calls down, and shapes the answer. No logic of their own."""
