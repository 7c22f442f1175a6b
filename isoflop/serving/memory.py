"""How many pages an engine has, from a stated number of bytes or from what is free, and what it needs in all."""

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
        RequestError: `cache_bytes` holds not even one page for a sequence, or is more than there is.
    """
    one, device = page_bytes(model, n_mtp), model.embedding.weight.device
    if cache_bytes:
        if cache_bytes > (there := device_bytes(device)):
            raise RequestError(f"cache_bytes = {cache_bytes} is above the {there} bytes of {device}; give less, or 0")
        if cache_bytes < 2 * one:
            raise RequestError(
                f"cache_bytes = {cache_bytes} must hold at least 2 pages of {one} bytes; give {2 * one} or more"
            )
        return cache_bytes // one
    wanted = 1 + max_rows * -(-model.config.seq_len // PAGE)
    room = int(free_bytes(device) * MAX_SHARE) // one
    return max(2, min(wanted, room))


def needed_bytes(model: Transformer, *, n_pages: int, max_rows: int, budget: int, n_mtp: int = 0) -> int:
    """Most memory that an engine holds on its device once its weights are cast: they, the pages, and the largest step.

    A step of `budget` tokens is largest in an MLP: the stream, an update and a norm of it, gate and up and their
    product; with experts each token's rows instead. Drawing adds the logits of `max_rows` rows, twice in float32.
    """
    config, width = model.config, model.dtype.itemsize
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    inner = 3 * config.d_ff
    if config.experts is not None:
        experts = config.experts
        inner = max(inner, experts.n_active * (2 * config.d_model + 3 * experts.d_expert))
    step = min(budget, max_rows * config.seq_len) * (4 * config.d_model + inner) * width
    return weights + n_pages * page_bytes(model, n_mtp) + step + max_rows * config.vocab_size * (width + 8)


def free_bytes(device: torch.device) -> int:
    """Memory that nobody uses."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def device_bytes(device: torch.device) -> int:
    """All of its memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
