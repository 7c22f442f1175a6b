"""Text in: readers, cleaning, deduplication, mixture."""
