"""Products, pages and experts of a decoding step of a few tokens, each in one kernel (kernels/decode.py).

For bf16 and float32 on a GPU. The plain forms of the same are the modules of `isoflop.model`, which compute everything
else; tests hold both together, in float32 through Triton's interpreter, and in both formats on a GPU.

Shapes: N tokens, D in, F out, H query heads, G key/value heads, C channels of a head, L channels of a latent, R rows of
W tokens, P pages of a row, E experts, A active experts, V channels of a value.
"""

import functools
import importlib
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.numerics.joined import rms_norm, swiglu
from isoflop.numerics.launch import has_kernels, launch, power_of_two

MOST_ROWS = 8
"""Tokens up to which a step is computed here; experts above are better grouped (assumption)."""
Tiles = tuple[int, int, int, int]
"""Rows of the weight of a program, columns at a time, those in flight, and warps. Columns 0: all of them at once, in
registers before the kernel in front has ended."""
PAIR: dict[tuple[int, bool], Tiles | None] = {
    (1024, False): (2, 0, 0, 1),
    (1024, True): (2, 0, 0, 1),
    (2048, False): (8, 0, 0, 4),
    (2048, True): (2, 0, 0, 2),
    (3072, False): (2, 0, 0, 1),
    (2**31, False): (2, 0, 0, 4),
    (2**31, True): None,
}
"""Of two tokens that read weights together: by the most columns, and whether the product is gated; None: cuBLAS.

Measured at 1,024 and 2,048, as those below (docs/log.md); `benchmarks/pair_products.py` prints tables to put here.
"""
ONE: dict[tuple[int, bool], Tiles] = {
    (1024, False): (2, 0, 0, 1),
    (1024, True): (2, 0, 0, 1),
    (2048, False): (4, 0, 0, 2),
    (2048, True): (1, 0, 0, 1),
    (2816, False): (1, 0, 0, 1),
    (5504, False): (2, 0, 0, 1),
}
"""The same of one token, where the table has its number of columns; `_tiles` elsewhere."""
HELD_COLUMNS = 1024
"""Columns at a time of the rows that are in registers (measured, docs/log.md)."""
HEAD_ROWS = 8192
"""Logits up to which the head of one or two tokens is computed here, with the norm before it; cuBLAS's above."""
SPLIT_PAGES = 4
"""Pages whose keys one program attends to (assumption: 256 keys, the start of a program is then a small part)."""


class Norm(NamedTuple):
    """Of an RMSNorm: its weight in float32, and what is added to the mean square."""

    weight: Tensor
    eps: float


def product(
    x_ND: Tensor,
    weight_FD: Tensor,
    other: Tensor | None = None,
    *,
    norm: Norm | None = None,
    plus_NF: Tensor | None = None,
    gated: bool = False,
) -> Tensor:
    """plus + norm(x) W^T [N, F], or `gated`: silu(first half) * second half. Rows of `other` follow the weight's.

    More tokens than two are cuBLAS's business (docs/log.md), which writes over `plus`.
    """
    if len(x_ND) == 1 or (len(x_ND) == 2 and _pair_tiles(x_ND.shape[1], gated) is not None):
        return _product(x_ND, weight_FD, other, norm=norm, plus_NF=plus_NF, gated=gated)
    h_ND = x_ND if norm is None else rms_norm(x_ND, norm.weight, norm.eps)
    if plus_NF is not None:
        return plus_NF.addmm_(h_ND, weight_FD.T)
    y_NF = F.linear(h_ND, weight_FD)
    if other is not None:
        y_NF = torch.cat((y_NF, F.linear(h_ND, other)), 1)
    return swiglu(y_NF) if gated else y_NF


def _product(
    x_ND: Tensor,
    weight_FD: Tensor,
    other: Tensor | None,
    *,
    norm: Norm | None,
    plus_NF: Tensor | None = None,
    gated: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """In one kernel, where every token reads the weights."""
    n_tokens, n_in = x_ND.shape
    n_out = len(weight_FD) // 2 if gated else len(weight_FD) + (0 if other is None else len(other))
    out_NF = x_ND.new_empty(n_tokens, n_out, dtype=dtype or x_ND.dtype)
    gain, eps = norm or (None, 0.0)
    tiles = _pair_tiles(n_in, gated) if n_tokens == 2 and n_out >= 512 else None
    pair = tiles is not None
    tile, depth, stages, warps = tiles or _tiles(n_in, n_out, gated)
    n_first = n_out if other is None else len(weight_FD)
    if depth == 0:
        kernel, depth = product_kernels().held_products, min(HELD_COLUMNS, power_of_two(n_in))
        sizes = {"depth": depth, "parts": -(-n_in // depth)}
    else:
        kernel = product_kernels().products
        sizes = {"depth": depth, "stages": stages, "lines": power_of_two(-(-n_in // 64))}
    launch_early(
        kernel, (-(-n_first // tile) + -(-(n_out - n_first) // tile), 1 if pair else n_tokens),
        x_ND, gain, weight_FD, other, plus_NF, out_NF, n_out, n_first, eps,
        n_in=n_in, two=other is not None, joined=plus_NF is not None, normed=norm is not None, gated=gated, pair=pair,
        tile=tile, **sizes, num_warps=warps,
    )  # fmt: skip
    return out_NF


def _pair_tiles(n_in: int, gated: bool) -> Tiles | None:
    return next(tiles for (most, of_gated), tiles in PAIR.items() if n_in <= most and gated == of_gated)


def _tiles(n_in: int, n_out: int, gated: bool) -> Tiles:
    """Of one token, or of a token beside others (measured, docs/log.md)."""
    if (n_in, gated) in ONE and n_out >= 512:
        return ONE[n_in, gated]
    if n_out < 512:
        return 1, min(1024, power_of_two(n_in)), 2, 4
    if n_in > 4096:
        return (16, 512, 3, 8) if n_in > 8192 else (1, 2048, 1, 4)
    return 4, min(1024, power_of_two(n_in)), 3 if gated and n_in > 2048 else 1, 4


def last_norm(x_ND: Tensor, norm: Norm) -> Tensor:
    """norm(x)."""
    out_ND, n = torch.empty_like(x_ND), x_ND.shape[1]
    arguments = (x_ND, norm.weight, out_ND, n, norm.eps)
    launch_early(product_kernels().last_norm, (len(x_ND),), *arguments, width=power_of_two(n), num_warps=4)
    return out_ND


BLOCK = 2048
"""Logits of which one program finds the largest (assumption)."""


def most_likely(logits_NV: Tensor) -> Tensor:
    """The first id of each row's largest logit, and that logit, [N, 2] in float64, which holds ids exactly.

    Logits that are no numbers show in it as one that is not finite.
    """
    best_NK, ids_NK = best_of_blocks(logits_NV)
    n_rows, n_blocks = best_NK.shape
    if ids_NK.dtype == torch.int64:  # of the plain form
        return torch.cat((ids_NK.double(), best_NK.double()), 1)
    out_N2 = logits_NV.new_empty(n_rows, 2, dtype=torch.float64)
    kernel = few_rows_kernels().best_of_row
    launch_early(kernel, (n_rows,), best_NK, ids_NK, out_N2, n_blocks, blocks=power_of_two(n_blocks))
    return out_N2


def best_of_blocks(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit of each block of a row, and the first place that has it; in one block without kernels."""
    if not has_kernels(logits_NV, wide=True) or not logits_NV.is_contiguous():
        return logits_NV.max(-1, keepdim=True)
    n_rows, n = logits_NV.shape
    n_blocks = -(-n // BLOCK)
    best_NK = logits_NV.new_empty(n_rows, n_blocks, dtype=torch.float32)
    ids_NK = logits_NV.new_empty(n_rows, n_blocks, dtype=torch.int32)
    kernel = few_rows_kernels().best_of_blocks
    launch_early(kernel, (n_rows, n_blocks), logits_NV, best_NK, ids_NK, n, n_blocks, block=BLOCK)
    return best_NK, ids_NK


def turn_and_write(
    qkv_NHC: Tensor, cos_NC: Tensor, sin_NC: Tensor, slots_N: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """Turned queries [N, H, C] of a joint product [N, H + 2 G, C]; turned keys and values go to their slots.

    Pages are [n_pages, PAGE, G, C]; a slot is a token's place in them.
    """
    n_tokens, n_all, width = qkv_NHC.shape
    n_groups = keys.shape[2]
    n_heads, half = n_all - 2 * n_groups, width // 2
    q_NHC = qkv_NHC.new_empty(n_tokens, n_heads, width)
    launch_early(
        few_rows_kernels().turn_and_write, (n_tokens, n_all),
        qkv_NHC.contiguous(), cos_NC, sin_NC, slots_N, q_NHC, keys, values, n_heads, n_groups, half,
        channels=power_of_two(half), num_warps=1,
    )  # fmt: skip
    return q_NHC


def absorb_and_write(
    joint_NX: Tensor,
    norm: Norm,
    up: Tensor,
    sizes: tuple[int, int, int],
    angles: tuple[Tensor, Tensor],
    slots_N: Tensor,
    keys: Tensor,
) -> Tensor:
    """Queries [N, H, L + rope] against latents, of the joint product [N, H (nope + rope) + L + rope].

    `sizes`: heads, nope and value; `up` is the weight [H (nope + value), L] that makes keys and values of latents. The
    normed latent and the turned key go to their slots.
    """
    (n_heads, d_nope, d_value), (cos_NC, sin_NC) = sizes, angles
    n_tokens, d_latent, half, block = len(joint_NX), up.shape[1], cos_NC.shape[1], 64
    q_NHL = joint_NX.new_empty(n_tokens, n_heads, d_latent + 2 * half)
    launch_early(
        few_rows_kernels().absorb_and_write, (n_tokens, 1 + n_heads * -(-d_latent // block)),
        joint_NX, norm.weight, up, cos_NC, sin_NC, slots_N, q_NHL, keys,
        n_heads, d_nope, d_value, d_latent, half, norm.eps,
        heads=power_of_two(n_heads), nopes=power_of_two(d_nope), latents=power_of_two(d_latent),
        channels=power_of_two(half), block=block, num_warps=4,
    )  # fmt: skip
    return q_NHL


def attend_pages(
    q_NHC: Tensor, keys: Tensor, values: Tensor, table_RP: Tensor, before_R: Tensor, scale: float | None
) -> Tensor:
    """Attention of R rows of W queries to their pages, [N, H, V]: query w of a row sees before + w + 1 keys.

    Pages are [n_pages, PAGE, G, C]; values may be the first channels of the keys, which are then read once.
    """
    n_tokens, n_heads, d_key = q_NHC.shape
    page, n_groups, d_value = values.shape[1:]
    n_rows, n_columns = table_RP.shape
    width, sharing, latent = n_tokens // n_rows, n_heads // n_groups, d_key != d_value
    queries, n_splits = min(64, power_of_two(sharing * width)), -(-n_columns // SPLIT_PAGES)
    is_split = n_splits > 1
    out = q_NHC.new_empty(n_tokens, n_heads, d_value)
    parts = stats = None
    if is_split:
        parts = q_NHC.new_empty(n_tokens, n_heads, n_splits, d_value, dtype=torch.float32)
        stats = q_NHC.new_empty(n_tokens, n_heads, n_splits, 2, dtype=torch.float32)
    factor = (d_key**-0.5 if scale is None else scale) / math.log(2)
    launch_early(
        few_rows_kernels().attend_pages, (n_rows, n_groups * -(-sharing * width // queries), n_splits),
        q_NHC.contiguous(), keys, values, table_RP, before_R, out, parts, stats,
        n_heads, n_groups, n_columns, n_splits, d_key, d_value, factor,
        width=width, sharing=sharing, queries=queries, channels=power_of_two(d_value),
        ropes=power_of_two(d_key - d_value) if latent else 0, page=page, split_pages=SPLIT_PAGES,
        block=32 if latent else page, is_split=is_split, num_warps=4, num_stages=2,
    )  # fmt: skip
    if parts is not None:
        splits, block = power_of_two(n_splits), min(128, power_of_two(d_value))
        launch_early(
            few_rows_kernels().merge_splits, (n_tokens, n_heads, -(-d_value // block)),
            parts, stats, before_R, out, n_heads, n_columns, n_splits, d_value,
            width=width, page=page, split_pages=SPLIT_PAGES, splits=splits, block=block, num_warps=4,
        )  # fmt: skip
    return out


def values_up(mixed_NHL: Tensor, up: Tensor, d_nope: int) -> Tensor:
    """Values [N, H, V] of mixed latents, by each head's last rows of `up` [H (nope + V), L]."""
    n_tokens, n_heads, d_latent = mixed_NHL.shape
    d_value, tile = len(up) // n_heads - d_nope, 16
    out_NHV = mixed_NHL.new_empty(n_tokens, n_heads, d_value)
    launch_early(
        few_rows_kernels().values_up, (n_tokens, n_heads, -(-d_value // tile)),
        mixed_NHL, up, out_NHV, n_heads, d_nope, d_value, d_latent,
        tile=tile, latents=power_of_two(d_latent), num_warps=4,
    )  # fmt: skip
    return out_NHV


EXPERTS_UP = (8, 256, 4, 4)
"""As `_tiles` of a mixture's first product (measured, docs/log.md)."""
EXPERTS_DOWN = (1, 1024, 2)
"""Rows, columns and warps of its last one."""


class Mixture(NamedTuple):
    """Weights of a layer's experts and how they are chosen (`model.config.ExpertConfig`)."""

    router: Tensor
    bias: Tensor | None
    gate_up: Tensor
    down: Tensor
    shared_gate_up: Tensor | None
    shared_down: Tensor | None
    n_active: int
    sigmoid: bool
    normalise: bool
    routed_scale: float


def mixture(x_ND: Tensor, norm: Norm, of: Mixture) -> Tensor:
    """x and what experts and shared experts make of its norm, added, [N, D]; scores in float32."""
    scores_NE = _product(x_ND, of.router, None, norm=norm, dtype=torch.float32)
    (n_tokens, n_in), (n_experts, _, n_inner) = x_ND.shape, of.down.shape
    n_shared = 0 if of.shared_down is None else of.shared_down.shape[1]
    widest, depth, stages, warps = EXPERTS_UP
    tile = math.gcd(widest, n_inner)  # a program stays within an expert
    inner_NF = x_ND.new_empty(n_tokens, of.n_active * n_inner + n_shared)
    chosen_NA = x_ND.new_empty(n_tokens, of.n_active, dtype=torch.int32)
    launch_early(
        few_rows_kernels().experts_up, (n_tokens, -(-inner_NF.shape[1] // tile)),
        x_ND, norm.weight, scores_NE, of.bias, of.gate_up, of.shared_gate_up, inner_NF, chosen_NA,
        n_experts, n_inner, n_shared, of.routed_scale, norm.eps,
        n_in=n_in, n_active=of.n_active, biased=of.bias is not None, sigmoid=of.sigmoid, sharing=n_shared > 0,
        normalise=of.normalise, experts=power_of_two(n_experts), tile=tile, depth=min(depth, power_of_two(n_in)),
        stages=stages, num_warps=warps,
    )  # fmt: skip
    out_ND, (tile, depth, warps) = torch.empty_like(x_ND), EXPERTS_DOWN
    launch_early(
        few_rows_kernels().experts_down, (n_tokens, -(-n_in // tile)),
        inner_NF, chosen_NA, of.down, of.shared_down, x_ND, out_ND, n_in,
        n_inner=n_inner, n_shared=n_shared, n_active=of.n_active,
        tile=tile, depth=min(depth, power_of_two(n_inner)), num_warps=warps,
    )  # fmt: skip
    return out_ND


def launch_early(kernel: Any, grid: tuple[int, ...], x: Tensor, *arguments: Any, **settings: Any) -> None:
    early = _may_overlap(x.device)
    launch(kernel, grid, x, *arguments, early=early, launch_pdl=early, **settings)


@functools.cache
def _may_overlap(device: torch.device) -> bool:
    """Whether a kernel can begin before the one in front of it has ended: on Hopper and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9


@functools.cache
def few_rows_kernels() -> Any:
    """The module of kernels, imported where one is launched: CPUs have no Triton."""
    return importlib.import_module("isoflop.numerics.kernels.decode")


@functools.cache
def product_kernels() -> Any:
    return importlib.import_module("isoflop.numerics.kernels.products")
