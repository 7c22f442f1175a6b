"""Language-model pre-training: recipe, workload, context extension, validation."""
