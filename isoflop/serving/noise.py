"""The noise of a draw: a pure function of a seed and the position of the token that is drawn.

Token = argmax(processed logits + Gumbel noise) is a draw from their softmax. As the noise hangs on (seed, position)
alone, the text of a seed is the same beside any neighbours, after any interruption, and with any drafts: a draft that
is drawn with the same noise is right more often than an independent one (arXiv 2408.07978).

Philox 4x64-10 (Salmon et al. 2011) with the seed as key and (block, position) as counter, as numpy computes it. A
kernel makes the same bits on a GPU, whose logarithms may differ in the last places.
"""

import numpy as np
import torch
from torch import Tensor

from isoflop.numerics.few_rows import few_rows_kernels
from isoflop.numerics.launch import has_kernels, launch

_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
"""Of Philox 4x64 (Salmon et al. 2011, table 2)."""
_STREAM = 0x69736F666C6F70  # the second half of the key: keeps these draws apart from other uses of a seed


def gumbel(seed: int, position: int, n: int) -> np.ndarray:
    """Gumbel noise of the `n` tokens that may stand at `position`, float32."""
    generator = np.random.Philox(key=np.array([seed, _STREAM], np.uint64), counter=[0, position, 0, 0])
    bits = generator.random_raw(-(-n // 2)).view(np.uint32)[:n]
    # Small u is what wins, and float32 is fine-grained there: -log1p(-u) is exponential, its -log is Gumbel.
    u = np.minimum((bits.astype(np.float32) + np.float32(0.5)) * np.float32(2**-32), np.float32(1 - 2**-24))
    return -np.log(-np.log1p(-u))


def gumbel_rows(seeds_positions: list[tuple[int, int]], n: int, device: torch.device) -> Tensor:
    """One row of noise for each (seed, position), [R, n] float32."""
    if has_kernels(torch.empty(0, device=device), wide=True):
        keys_R2 = np.array(seeds_positions, np.uint64).view(np.int64)
        return _gumbel_kernel(torch.from_numpy(keys_R2).to(device, non_blocking=True), n)
    rows = np.stack([gumbel(seed, position, n) for seed, position in seeds_positions])
    return torch.from_numpy(rows).to(device, non_blocking=True)


def _gumbel_kernel(keys_R2: Tensor, n: int) -> Tensor:
    out_RV, block = torch.empty(len(keys_R2), n, device=keys_R2.device), 128
    kernel, grid = few_rows_kernels().gumbel, (len(keys_R2), -(-n // (8 * block)))
    launch(kernel, grid, keys_R2, out_RV, n, _STREAM, first=_MULTIPLIERS[0], second=_MULTIPLIERS[1], block=block)
    return out_RV
