"""Schedules sequences and manages their KV blocks."""
