"""What benchmarks share: machines, processes, load, arithmetic, reports."""
