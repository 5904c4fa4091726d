"""Runs files of requests without HTTP, by the same rules as the routes."""
