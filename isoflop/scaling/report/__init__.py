"""A study as figures and one page."""
