"""From a checkpoint on disk to an engine: checks, memory plan, placement, weights."""
