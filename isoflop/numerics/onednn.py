"""float32 products on a CPU through oneDNN, which PyTorch itself takes for bfloat16 only.

PyTorch's own float32 product is MKL's. On the processors that were measured oneDNN reads weights 1.0 to 1.5 times as
fast for one row and computes 1.3 to 2.3 times as fast for 2 to 128 rows (benchmarks/decode.py, docs/serving.md). The
sums have another order, nothing else. A weight that is held lies in oneDNN's own order, a copy: one row costs the same
then, eight rows 0.5 to 0.8 as much (docs/serving.md). For models that are only asked: there is no backward pass.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.numerics.linear import MatmulBackend


def has_onednn() -> bool:
    """Whether this PyTorch has the product; it is no public function."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class OneDnnProduct(MatmulBackend):
    """y = x W^T in float32."""

    ROWS = 8
    """For so many rows a held weight is laid out; others are computed from it too."""

    def __init__(self, *, leaves_rows: bool = False):
        """With `leaves_rows` a single row is left to PyTorch's own product."""
        super().__init__()
        self._leaves_rows = leaves_rows
        self._held: Tensor | None = None

    def hold(self, weight: Tensor, adds: bool) -> bool:
        with torch.inference_mode():
            self._held = torch.ops.mkldnn._reorder_linear_weight(weight, self.ROWS)
        return True

    def release(self) -> None:
        self._held = None

    def forward(self, x: Tensor, weight: Tensor, part: int = 0) -> Tensor:
        if not x.numel():  # an expert without rows
            return x.new_zeros(*x.shape[:-1], len(weight))
        if self._leaves_rows and x.numel() == weight.shape[-1]:
            return F.linear(x, weight)
        held = weight if self._held is None else self._held
        return torch.ops.mkldnn._linear_pointwise(x, held, None, "none", [], "")
