"""What all shapes of a sweep have in common besides their size: dense or experts, and the kind of attention.

A `Family` (the `[family]` section of a ladder recipe) and a dense shape go in, the family's member of that width comes
out. The rules, so that neighbours in size stay neighbours in shape:

- One expert is 8/3 d_model / granularity wide, rounded up to a multiple of 8, 32 (d >= 512) or 64 (d >= 1024): the
  1408 of DeepSeekMoE 16B and V2-Lite is width 2048 at granularity 4.
- The dense layers at the bottom are (n_active + n_shared) experts wide, as in V2 and V3, so every block costs the
  same but for its router. With n_active + n_shared = granularity, a block costs what the dense family's costs.
- Latent attention keeps the dense family's heads as its parts without position (d_nope = d_value = d_head) and adds
  rotary channels; the latents are shares of d_model. V2-Lite is kv_share 0.25 without query latent.

Source: widths and ratios of the released configurations of DeepSeekMoE (arXiv 2401.06066), V2 (2405.04434) and V3
(2412.19437); the multiples below width 1024 are assumptions.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Literal

from isoflop.model.config import ExpertConfig, LatentConfig, ModelConfig
from isoflop.recipe import NotNegative, NotNegativeInt, Positive, PositiveInt, Range

_MULTIPLES = ((1024, 64), (512, 32), (0, 8))


@dataclass(frozen=True)
class ExpertFamily:
    """Mixture of experts: counts are the same at every size, widths follow d_model."""

    n_experts: PositiveInt
    """Routed experts."""
    n_active: PositiveInt
    """Routed experts that a token uses."""
    granularity: Annotated[float, Range(at_least=0.5)] = 4.0
    """Width of the dense family's MLP, 8/3 d_model, over that of one expert: 1 is as wide as it, 4 a quarter."""
    n_shared: NotNegativeInt = 1
    """Experts that every token uses."""
    n_dense_layers: NotNegativeInt = 1
    """Blocks at the bottom with a dense MLP."""
    affinity: Literal["sigmoid", "softmax"] = "sigmoid"
    """Of a token for an expert: sigmoid is V3's, softmax V2's and DeepSeekMoE's."""
    normalise: bool = True
    """Weights of the chosen experts add up to 1 before scaling."""
    routed_scale: Positive = 1.0
    """Factor of the routed experts' sum."""
    selection_bias: bool = True
    """Choose by affinity + bias, the bias moved by load alone."""
    n_groups: PositiveInt = 1
    """Equal groups of experts, one a node."""
    n_groups_kept: PositiveInt = 1
    """Groups that a token may use."""
    group_score: Literal["top_sum", "max"] = "top_sum"
    """Of a group: sum of its best selection scores (top_sum, V3), or its best one (max, V2)."""

    def config(self, d_model: int) -> ExpertConfig:
        """The experts of a model of this width."""
        same = {key: value for key, value in vars(self).items() if key != "granularity"}
        return ExpertConfig(d_expert=rounded_up(8 * d_model / 3 / self.granularity, d_model), **same)


@dataclass(frozen=True)
class LatentFamily:
    """Multi-head latent attention, sizes as shares."""

    kv_share: Positive = 0.25
    """Key and value latent over d_model (V2-Lite 0.25, V2 0.1, V3 0.07)."""
    q_share: NotNegative = 0.0
    """Query latent over d_model (V2 0.3, V3 0.21); 0: none, as V2-Lite."""
    rope_share: Positive = 0.5
    """Rotary channels of a head over those without position (released models: 64 of 128)."""

    def config(self, d_model: int, d_head: int) -> LatentConfig:
        """The latents of a model of this width, `d_head` being the channels without position."""
        return LatentConfig(
            d_kv_latent=rounded_up(self.kv_share * d_model, d_model),
            d_nope=d_head,
            d_rope=2 * max(1, round(self.rope_share * d_head / 2)),
            d_value=d_head,
            d_q_latent=rounded_up(self.q_share * d_model, d_model) if self.q_share else 0,
        )


@dataclass(frozen=True)
class Family:
    """The kind of model that a sweep is made of; the default is the dense family with plain attention."""

    experts: ExpertFamily | None = None
    """Mixture of experts in place of the MLP."""
    latent: LatentFamily | None = None
    """Multi-head latent attention in place of MHA."""
    heads_per_kv_head: PositiveInt = 1
    """Query heads that share keys and values, at most (GQA); the largest divisor of the heads up to it is taken."""
    mtp_depth: NotNegativeInt = 0
    """Multi-token prediction modules of every size."""

    def member(self, dense: ModelConfig) -> ModelConfig:
        """The family's model with the depth and width of a dense one."""
        changes: dict[str, object] = {}
        if self.experts is not None:
            experts = self.experts.config(dense.d_model)
            changes["experts"] = experts
            changes["d_ff"] = (experts.n_active + experts.n_shared) * experts.d_expert
        if self.latent is not None:
            latent = self.latent.config(dense.d_model, dense.d_head)
            changes |= {"latent": latent, "d_head": latent.d_nope + latent.d_rope}
        elif self.heads_per_kv_head > 1:
            shares = range(min(self.heads_per_kv_head, dense.n_heads), 0, -1)
            changes["n_kv_heads"] = dense.n_heads // next(n for n in shares if dense.n_heads % n == 0)
        if self.mtp_depth:
            changes["mtp_depth"] = self.mtp_depth
        return dataclasses.replace(dense, **changes) if changes else dense  # type: ignore[arg-type]


DENSE = Family()


def rounded_up(width: float, d_model: int) -> int:
    """A width as the smallest multiple above it that kernels like at this d_model."""
    multiple = next(m for low, m in _MULTIPLES if d_model >= low)
    return max(1, math.ceil(width / multiple - 1e-9)) * multiple


def family_text(config: ModelConfig) -> str:
    """The kind of a model in words that do not change with its size: what sweeps are compared by."""
    experts, latent, kind = config.experts, config.latent, "dense"
    if experts is not None:
        kind = f"{experts.n_experts} experts, {experts.n_active} active, {experts.n_shared} shared, {experts.affinity}"
        kind += f", {experts.n_dense_layers} dense layers"
    attention = "MHA" if config.n_kv_heads == config.n_heads else "GQA"
    if latent is not None:
        attention = "MLA with query latent" if latent.d_q_latent else "MLA"
    return f"{kind}; {attention}" + (f"; MTP {config.mtp_depth}" if config.mtp_depth else "")


def activated_share(config: ModelConfig) -> float:
    """Share of a layer's experts that a token uses, shared ones included: the A of arXiv 2507.17702; dense: 1."""
    experts = config.experts
    return 1.0 if experts is None else (experts.n_active + experts.n_shared) / (experts.n_experts + experts.n_shared)
