"""Tables of runs in, fitted laws out, in numpy and scipy only."""
