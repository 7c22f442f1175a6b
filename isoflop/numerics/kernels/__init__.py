"""Triton kernels of the training step, and nothing else: what is computed is said by the plain forms that call them.

`isoflop.numerics.joined` (elementwise steps of a block, cross-entropy) and `isoflop.numerics.fp8_real` (quantisation)
launch them and hold the plain PyTorch forms that are the CPU path and the reference. Triton comes with torch for CUDA
only, so these files are imported at the first launch.
"""
