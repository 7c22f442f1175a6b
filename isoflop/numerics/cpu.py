"""float32 products on a CPU for models that are only asked: MKL's with weights laid out before, and oneDNN's.

PyTorch's own float32 product is MKL's, which lays the weights out anew at every call of two rows or more. Laid out
once, a copy, they take 0.5 to 0.8 of its time for 4 to 256 rows, and 0.6 to 0.9 of that of oneDNN with weights in an
order of its own (docs/serving.md). What is not held goes through oneDNN, which PyTorch itself takes for bfloat16 only:
on some processors it reads the weights 1.0 to 1.5 times as fast for a single row. The sums have another order, nothing
else. There is no backward pass.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.numerics.linear import MatmulBackend


def has_onednn() -> bool:
    """Whether this PyTorch has the product; it is no public function."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def has_packed() -> bool:
    """The same of MKL's with weights laid out before."""
    return torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")


class CpuProduct(MatmulBackend):
    """y = x W^T in float32."""

    ROWS = 256
    """Rows that a held weight is laid out for: a hint that fewer and more do well with (measured, docs/serving.md)."""

    def __init__(self, *, leaves_rows: bool = False):
        """With `leaves_rows` a single row is left to PyTorch's own product."""
        super().__init__()
        self._leaves_rows = leaves_rows
        self._packed: Tensor | None = None

    def hold(self, weight: Tensor, adds: bool) -> bool:
        """The weight itself is laid out by columns where a single row is left to PyTorch: MKL reads them faster."""
        if not has_packed():
            return False
        with torch.inference_mode():
            self._packed = torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), self.ROWS)
        if self._leaves_rows:
            weight.data = weight.data.t().contiguous().t()
        return True

    def release(self) -> None:
        self._packed = None

    def forward(self, x: Tensor, weight: Tensor, part: int = 0) -> Tensor:
        n_rows = x.numel() // weight.shape[-1]
        if n_rows == 0:  # an expert without rows
            return x.new_zeros(*x.shape[:-1], len(weight))
        if n_rows == 1 and self._leaves_rows:
            return F.linear(x, weight)
        if n_rows > 1 and self._packed is not None:
            return torch.ops.mkl._mkl_linear(x, self._packed, weight, None, n_rows)
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
