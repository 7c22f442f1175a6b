"""What is trained: one definition of the model and one place that counts it."""
