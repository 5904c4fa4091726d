"""Generates pictures and conversations about them."""
