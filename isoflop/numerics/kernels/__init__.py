"""Triton kernels of training and decoding steps, and nothing else: what is computed is said by plain forms.

`isoflop.numerics.joined` (elementwise steps of a block, cross-entropy) and `isoflop.numerics.fp8_scaled` (quantisation)
launch them and hold the plain PyTorch forms that are the CPU path and the reference; those of `decode`, launched by
`isoflop.numerics.few_rows`, are the modules of `isoflop.model`. Triton comes with torch for CUDA
only, so these files are imported at the first launch.
"""
