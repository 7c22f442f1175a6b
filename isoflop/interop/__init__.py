"""Checkpoints of other software in and out, and the proof that both compute the same thing."""
