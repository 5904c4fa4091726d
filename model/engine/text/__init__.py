"""Detokenization and prompt lookup."""
