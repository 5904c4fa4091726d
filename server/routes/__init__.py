"""Routes: each takes a request apart, calls the layers below, and shapes the response. No logic of their own."""
