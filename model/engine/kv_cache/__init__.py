"""Keys and values of tokens that were computed, in blocks, per device."""
