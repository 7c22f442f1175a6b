"""How many pages an engine has: from a stated number of bytes, or from what the machine has free."""

import os

import torch

from isoflop.errors import RequestError
from isoflop.model.accounting import kv_bytes_per_token
from isoflop.model.pages import PAGE
from isoflop.model.transformer import Transformer

MAX_SHARE = 0.5
"""Of free memory that pages may take by default: the rest is for the work itself (assumption)."""


def page_bytes(model: Transformer, n_mtp: int = 0) -> int:
    """Bytes of one page in all layers, those of `n_mtp` prediction modules included."""
    config = model.config
    per_token = kv_bytes_per_token(config, "bf16") // 2 * model.dtype.itemsize
    return PAGE * per_token * (config.n_layers + n_mtp) // config.n_layers


def n_pages_for(model: Transformer, *, max_rows: int, cache_bytes: int = 0, n_mtp: int = 0) -> int:
    """Pages of the pool, the one that belongs to nobody included.

    Raises:
        RequestError: `cache_bytes` holds not even one page for a sequence.
    """
    one = page_bytes(model, n_mtp)
    if cache_bytes:
        if cache_bytes < 2 * one:
            raise RequestError(
                f"cache_bytes = {cache_bytes} must hold at least 2 pages of {one} bytes; give {2 * one} or more"
            )
        return cache_bytes // one
    wanted = 1 + max_rows * -(-model.config.seq_len // PAGE)
    room = int(free_bytes(model.embedding.weight.device) * MAX_SHARE) // one
    return max(2, min(wanted, room))


def free_bytes(device: torch.device) -> int:
    """Memory that nobody uses."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
