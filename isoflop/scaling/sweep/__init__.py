"""Before and during a sweep: ladders, cells, workers, records."""
