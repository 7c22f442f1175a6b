"""One family of whole shapes, from widths of 8 to 16384: the size wanted goes in, the nearest real model comes out.

The rules, so that neighbours in size are also neighbours in shape:

- Depth follows width slowly: n = 3 (d / 64)^0.6, at least 2 (assumption; near 12 x 768 and 24 x 2048 of table 3 in
  arXiv 2401.02954). A shape may miss the rule by a factor 1.5; that closes the gaps between widths.
- Widths are multiples of 8 below 32, of 16 below 128, of 32 below 512, of 64 below 2048, of 128 above.
- Heads have 8 channels below d 32, 16 below 128, 32 below 512, 64 below 2048, 128 above: kernels want multiples of 8,
  and curves over neighbouring sizes are smooth only if heads do not change from one to the next (docs/log.md).
  No GQA by default.
- SwiGLU: 8/3 d rounded up to a multiple of 8, 32 (d >= 128), 64 (>= 512), 256 (>= 1024: paper).
- Experts, latent attention and shared keys are laid over the dense shape by scaling/sweep/family.py, so that families
  agree in everything else.
- Initial weights: standard deviation 0.006 sqrt(4096 / d) below d 4096: the paper's 0.006 is that of its 7B, whose
  width is 4096; a narrow model with 0.006 would start with vanishing activations (assumption, docs/scaling.md).
"""

import functools
import math

from isoflop.errors import RecipeError
from isoflop.model.accounting import flops_per_token
from isoflop.model.config import ModelConfig, swiglu_width
from isoflop.recipe import Tree, to_tree
from isoflop.scaling.sweep.family import DENSE, Family

_DEPTH_SLACK = 1.5
_SCALE_SLACK = 1.2
_WIDTH_STEPS = ((8, 32, 8), (32, 128, 16), (128, 512, 32), (512, 2048, 64), (2048, 16385, 128))
_WIDTHS = tuple(width for low, high, step in _WIDTH_STEPS for width in range(low, high, step))


def depth_rule(d_model: int) -> float:
    """Layers that the family wants at this width, before rounding."""
    return max(2.0, 3.0 * (d_model / 64) ** 0.6)


def init_std_rule(d_model: int) -> float:
    """Standard deviation of the initial weights: 0.006 from width 4096 up (paper), growing as 1 / sqrt(d) below."""
    return round(0.006 * max(1.0, math.sqrt(4096 / d_model)), 6)


def shape(
    d_model: int,
    n_layers: int | None = None,
    *,
    vocab_size: int,
    seq_len: int,
    init_std: float = 0.0,
    family: Family = DENSE,
) -> ModelConfig:
    """The family's member of this width; `n_layers` None takes the depth rule, `init_std` 0 its own rule."""
    d_head = next(c for low, c in ((2048, 128), (512, 64), (128, 32), (32, 16), (0, 8)) if d_model >= low)
    n_heads = d_model // d_head
    multiple = next(m for low, m in ((1024, 256), (512, 64), (128, 32), (0, 8)) if d_model >= low)
    dense = ModelConfig(
        n_layers=round(depth_rule(d_model)) if n_layers is None else n_layers,
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_head,
        d_ff=swiglu_width(d_model, multiple),
        vocab_size=vocab_size,
        seq_len=seq_len,
        init_std=init_std or init_std_rule(d_model),
    )
    return family.member(dense)


def least_layers(family: Family) -> int:
    """Two, and one above the dense layers of a mixture of experts."""
    return max(2, 1 + family.experts.n_dense_layers) if family.experts else 2


@functools.lru_cache(maxsize=65536)
def _flops_of_layers(d_model: int, seq_len: int, family: Family) -> tuple[int, int]:
    """(offset, slope) of M over the number of layers; the dense layers of a mixture are the offset."""
    first = least_layers(family)
    few, more = (
        flops_per_token(shape(d_model, n, vocab_size=1, seq_len=seq_len, family=family), "M")
        for n in (first, first + 1)
    )
    return few - first * (more - few), more - few


def largest_scale(seq_len: int, family: Family = DENSE) -> float:
    """M of the family's largest member, in FLOPs per token."""
    offset, layer = _flops_of_layers(_WIDTHS[-1], seq_len, family)
    return float(offset + round(depth_rule(_WIDTHS[-1])) * layer)


def scale_limits(seq_len: int, family: Family = DENSE) -> tuple[float, float]:
    """The least and the largest M that `shape_near` has a shape for."""
    offset, layer = _flops_of_layers(_WIDTHS[0], seq_len, family)
    smallest = float(offset + least_layers(family) * layer)
    return smallest / _SCALE_SLACK, largest_scale(seq_len, family) * _SCALE_SLACK


def shape_near(
    flops_per_token: float, *, vocab_size: int, seq_len: int, init_std: float = 0.0, family: Family = DENSE
) -> ModelConfig:
    """The family's shape nearest to a model scale M: smallest |ln miss in M| + half |ln miss of the depth rule|.

    Units: FLOPs per token, convention "M" of isoflop.model.accounting (active experts, no head, full attention).

    Raises:
        RecipeError: smaller than the smallest or larger than the largest member by more than a factor 1.2.
    """
    found: list[tuple[float, int, int]] = []
    least = least_layers(family)
    for d_model in _WIDTHS:
        (offset, layer), rule = _flops_of_layers(d_model, seq_len, family), depth_rule(d_model)
        exact = (flops_per_token - offset) / layer
        usual = max(least, round(rule))
        for n_layers in {max(least, math.floor(exact)), max(least, math.ceil(exact)), usual}:
            off_rule = abs(math.log(n_layers / rule))
            if n_layers == usual or off_rule <= math.log(_DEPTH_SLACK):
                cost = abs(math.log((offset + n_layers * layer) / flops_per_token)) + 0.25 * off_rule
                found.append((cost, d_model, n_layers))
    _, d_model, n_layers = min(found)
    offset, layer = _flops_of_layers(d_model, seq_len, family)
    nearest = offset + n_layers * layer
    below = d_model == _WIDTHS[0] and nearest > _SCALE_SLACK * flops_per_token
    if below or (d_model == _WIDTHS[-1] and nearest < flops_per_token / _SCALE_SLACK):
        works = f"at least {nearest / _SCALE_SLACK:.3g}" if below else f"at most {nearest * _SCALE_SLACK:.3g}"
        raise RecipeError(
            f"flops_per_token = {flops_per_token:.3g} has no shape near it at seq_len = {seq_len}: the nearest "
            f"(d_model {d_model}, {n_layers} layers) has {nearest:.3g}; {works} works: "
            + ("raise the budget or shorten seq_len" if below else "lower the budget")
        )
    return shape(d_model, n_layers, vocab_size=vocab_size, seq_len=seq_len, init_std=init_std, family=family)


def model_tree(config: ModelConfig) -> Tree:
    """The `[model]` section of a shape; what it does not have is left out, so that dense cells keep their ids."""
    tree = to_tree(config)
    return tree if config.mtp_depth else {key: value for key, value in tree.items() if key != "mtp_depth"}
