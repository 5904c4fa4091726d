"""Evaluates the trained model over HTTP."""
