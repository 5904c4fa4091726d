"""Shared by all benchmarks: machine limits, processes, load, arithmetic, reports."""
