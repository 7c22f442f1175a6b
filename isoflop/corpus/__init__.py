"""Text in: readers, cleaning, deduplication, mixture, and sources of known entropy."""
