"""One file per benchmark: ``run(options)`` measures and returns a report."""
