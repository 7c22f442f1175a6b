"""The loop, and what it needs: schedules, optimizers, checkpoints, monitoring."""
