"""Physics of light: a photonic tensor core. Knows nothing of models and imports nothing of ours."""
