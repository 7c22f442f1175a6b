"""Job files: a recipe and what a machine offers -> a file that Slurm, Kubernetes, SkyPilot, torchrun or Ray runs."""
