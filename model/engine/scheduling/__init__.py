"""Which sequences run in the next step, and the blocks that they hold."""
