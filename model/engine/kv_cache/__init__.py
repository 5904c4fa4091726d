"""The paged KV cache, with an implementation per device."""
