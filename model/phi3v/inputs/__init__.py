"""From messages and pictures to token ids and pixels."""
