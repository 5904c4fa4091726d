"""One chat request: from its body to the engine's messages, and from text deltas to a completion."""
