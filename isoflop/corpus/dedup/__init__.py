"""Duplicates: exact, near, lines, passages."""
