"""Strangers' images: fetched within bounds, decoded in confined workers."""
