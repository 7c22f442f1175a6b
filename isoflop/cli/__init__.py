"""The command line: one file per group of commands; it prints, nothing else does."""
