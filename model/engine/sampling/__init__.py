"""Samples tokens from logits: processors, token masks, sampling, acceptance."""
