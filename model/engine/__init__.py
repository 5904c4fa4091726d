"""Requests in, text deltas out. Knows nothing of HTTP."""
