"""Converts request bodies to the engine's messages, and text deltas to completions."""
