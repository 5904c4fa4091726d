"""Runs the application as replicas on many devices or machines with Ray Serve."""
