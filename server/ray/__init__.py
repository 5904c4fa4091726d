"""The same application on many devices or machines, by Ray Serve."""
