"""The noise of a draw: a pure function of a seed and the position of the token that is drawn.

Token = argmax(processed logits + Gumbel noise) is a draw from their softmax. As the noise hangs on (seed, position)
alone, the text of a seed is the same beside any neighbours, after any interruption, and with any drafts: a draft that
is drawn with the same noise is right more often than an independent one (arXiv 2408.07978).

Philox 4x64-10 (Salmon et al. 2011) with the seed as key and (block, position) as counter, as numpy computes it. A GPU
without a kernel of its own for it gets the noise from the host.
"""

import numpy as np
import torch
from torch import Tensor

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
    rows = np.stack([gumbel(seed, position, n) for seed, position in seeds_positions])
    return torch.from_numpy(rows).to(device, non_blocking=True)
