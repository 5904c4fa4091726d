"""Converts messages and images to token ids and pixels."""
