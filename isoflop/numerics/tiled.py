"""A product whose rows do not depend on how many there are: always computed in tiles of one size.

A matrix product chooses its kernel, and with it the order of its sums, by its shape. Experts get as many rows as
routing gives them, so a row's last bits hang on its neighbours. In tiles of equal size, filled up with zeros, each row
is computed in the same shape whatever the batch. For the fixed-shape mode of serving.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.numerics.linear import MatmulBackend


class TiledProduct(MatmulBackend):
    """y = x W^T in the dtype of x, `tile` rows at a time."""

    def __init__(self, tile: int):
        super().__init__()
        self.tile = tile

    def forward(self, x: Tensor, weight: Tensor, part: int = 0) -> Tensor:
        x_MK, weight_NK = x.reshape(-1, x.shape[-1]), weight.to(x.dtype)
        n_rows = len(x_MK)
        padded_MK = F.pad(x_MK, (0, 0, 0, -n_rows % self.tile))
        tiles = [F.linear(tile, weight_NK) for tile in padded_MK.split(self.tile)] if n_rows else []
        y_MN = torch.cat(tiles) if tiles else x_MK.new_zeros(0, len(weight_NK))
        return y_MN[:n_rows].view(*x.shape[:-1], len(weight_NK))
