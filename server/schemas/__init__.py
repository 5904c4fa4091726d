"""Shapes and ranges of what goes over the wire, as pydantic models; no behaviour."""
