"""Untrusted images: fetched within limits, decoded in confined processes."""
