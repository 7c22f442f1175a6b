"""Text to integers: byte-level BPE, memory-mapped shards, batches."""
