"""One module per benchmark; ``run(options)`` measures and returns a report."""
