"""From logits to tokens: processors, token masks, sampling, acceptance."""
