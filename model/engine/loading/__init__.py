"""Loads an engine from a checkpoint: memory plan, placement, weights."""
