"""Seeing through a scattering slab: a second workload of the one training loop."""
