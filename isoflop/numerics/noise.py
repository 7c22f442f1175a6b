"""Noise as a function of its key: (seed, step, micro-batch, call) and the layer that asks.

Nothing is drawn from a running generator. Training sets the key before each micro-batch; a forward pass that is
computed twice (recomputation), or in another process (resuming), finds the same noise. In evaluation every call draws
anew: there nothing is recomputed, and a validation is one long measurement.
"""

import hashlib
import struct

import torch
from torch import Tensor

VALIDATION = 1 << 40
"""Micro-batch number under which validations draw, out of the way of training."""


class NoiseKey:
    """What all layers of a model share: where the run is."""

    def __init__(self, *seed: int):
        """`seed`: whole numbers that tell this run's noise from another's."""
        words = struct.pack(f"<{len(seed)}q", *seed)
        mixed = int.from_bytes(hashlib.blake2b(words, digest_size=7).digest(), "little")
        # A CPU tensor and not Python numbers: compiled blocks read it as data, so that a new step is no new program.
        self.key = torch.tensor([mixed, 0, 0, 0, 0], dtype=torch.int64)
        self._copies: dict[torch.device, Tensor] = {}

    def key_on(self, device: torch.device) -> Tensor:
        """The key for kernels of a GPU: one tensor that follows, so that a replayed CUDA graph finds its own step."""
        return self._copies.setdefault(device, self.key.to(device))

    def set(self, step: int, micro_batch: int) -> None:
        """Before a micro-batch of training (from 0), or before a validation (`VALIDATION`)."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank = torch.distributed.get_rank() if distributed else 0  # ranks see other rows, so they draw other noise
        self.key[1:] = torch.tensor([step, micro_batch, rank, 0])
        for copy in self._copies.values():
            copy.copy_(self.key, non_blocking=True)  # from memory that isn't pinned: read before this returns

    def next_call(self) -> None:
        """Evaluation: the next call draws anew."""
        self.key[4] += 1
        for copy in self._copies.values():
            copy[4].add_(1)


def keyed_generator(key: Tensor, label: list[int], device: torch.device) -> torch.Generator:
    """A generator at the start of the stream that belongs to `key` (of a NoiseKey) and `label` (layer, part, use)."""
    words = [*key.tolist(), *label]
    digest = hashlib.blake2b(struct.pack(f"<{len(words)}q", *words), digest_size=7).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little"))


@torch.library.custom_op("isoflop::keyed_normal", mutates_args=())
def keyed_normal(key: Tensor, label: list[int], shape: list[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard normal numbers that depend on `key` and `label` alone.

    Opaque to torch.compile, so compiled and eager code draw the same numbers. CPU and GPU draw different ones.
    """
    return torch.randn(shape, dtype=dtype, device=device, generator=keyed_generator(key, label, device))


@keyed_normal.register_fake
def _(key: Tensor, label: list[int], shape: list[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)
