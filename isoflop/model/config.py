"""Sizes of a model, and nothing else. No torch here: planning a model must not cost an import of it."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from isoflop.errors import RecipeError
from isoflop.recipe import NotNegative, NotNegativeInt, Positive, PositiveInt, Range, check_ranges


@dataclass(frozen=True)
class LatentConfig:
    """Multi-head latent attention (arXiv 2412.19437, section 2.1.1); model.d_head is then d_nope + d_rope."""

    d_kv_latent: PositiveInt
    """Channels of the latent that keys and values are made from; this and one rotary key are all that is cached."""
    d_nope: PositiveInt
    """Channels of a head's query and key without position."""
    d_rope: PositiveInt
    """Channels with rotary position, even; the key's are shared by all heads."""
    d_value: PositiveInt
    """Channels of a head's value."""
    d_q_latent: NotNegativeInt = 0
    """Channels of the query latent; 0: queries come straight from the hidden state (V2-Lite)."""


@dataclass(frozen=True)
class ExpertConfig:
    """A mixture of experts in place of the MLP (arXiv 2401.06066; arXiv 2412.19437, section 2.1.2)."""

    n_experts: PositiveInt
    """Routed experts."""
    n_active: PositiveInt
    """Routed experts that a token uses."""
    d_expert: PositiveInt
    """Inner width of one expert's SwiGLU."""
    n_shared: NotNegativeInt = 1
    """Experts that every token uses: one SwiGLU of n_shared * d_expert."""
    n_dense_layers: NotNegativeInt = 1
    """Blocks at the bottom that keep the dense MLP of width d_ff."""
    affinity: Literal["sigmoid", "softmax"] = "sigmoid"
    """Of a token for an expert: sigmoid is V3's, softmax V2's and DeepSeekMoE's."""
    normalise: bool = True
    """Weights of the chosen experts add up to 1 before scaling."""
    routed_scale: Positive = 1.0
    """Factor of the routed experts' sum."""
    selection_bias: bool = True
    """Choose by affinity + bias, the bias moved by load alone (auxiliary-loss-free balancing)."""
    n_groups: PositiveInt = 1
    """Equal groups of experts, one a node."""
    n_groups_kept: PositiveInt = 1
    """Groups a token may use; the others' scores become -inf."""
    group_score: Literal["top_sum", "max"] = "top_sum"
    """Of a group: sum of its n_active / n_groups_kept best selection scores (V3), or its best one (V2)."""


@dataclass(frozen=True)
class YarnConfig:
    """Rotary frequencies for contexts longer than trained (YaRN; arXiv 2412.19437, section 4.3)."""

    factor: Positive
    """Longest context over the original one."""
    original_seq_len: PositiveInt
    """Context that the model was trained at before extension."""
    beta_fast: Positive = 32.0
    """Pairs that turn more often than this in the original context keep their frequency."""
    beta_slow: Positive = 1.0
    """Pairs that turn less often than this are slowed by `factor`."""
    mscale: NotNegative = 1.0
    """Softmax scale times (0.1 mscale ln factor + 1)^2; V2-Lite 0.707, 0 leaves it."""


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer: dense as DeepSeek LLM (arXiv 2401.02954, section 2.2), or as DeepSeek-V3."""

    n_layers: Annotated[int, Range(at_least=1, at_most=10_000)]
    """Blocks."""
    d_model: PositiveInt
    """Width of the residual stream."""
    n_heads: PositiveInt
    """Query heads."""
    n_kv_heads: PositiveInt
    """Key and value heads; equal to n_heads is MHA, fewer is GQA; must divide n_heads."""
    d_head: PositiveInt
    """Channels of one head, even (rotary pairs)."""
    d_ff: PositiveInt
    """Inner width of the SwiGLU; the paper's rule is 8/3 d_model rounded up to a multiple of 256."""
    vocab_size: PositiveInt
    """Rows of the embedding and of the untied head, padding included."""
    seq_len: Annotated[int, Range(at_least=1, at_most=100_000_000)]
    """Longest sequence in tokens."""
    rope_base: Annotated[float, Range(above=1)] = 10000.0
    """Base of the rotary frequencies."""
    norm_eps: NotNegative = 1e-6
    """Added to the mean square in RMSNorm."""
    init_std: Positive = 0.006
    """Standard deviation of every initial weight (paper: 0.006; the choice for tiny widths is in docs/scaling.md)."""

    latent: LatentConfig | None = None
    """Multi-head latent attention instead of MHA and GQA."""
    experts: ExpertConfig | None = None
    """Mixture of experts instead of the MLP, above n_dense_layers."""
    mtp_depth: NotNegativeInt = 0
    """Multi-token prediction modules; they cost a block each and are dropped for inference."""
    yarn: YarnConfig | None = None
    """Context extension."""

    def __post_init__(self) -> None:
        check_ranges(self, "model.")
        if self.n_heads % self.n_kv_heads:
            raise RecipeError(
                f"model.n_kv_heads = {self.n_kv_heads} must divide model.n_heads = {self.n_heads}; "
                f"n_kv_heads = n_heads is plain multi-head attention"
            )
        if self.d_head % 2 and self.latent is None:
            raise RecipeError(f"model.d_head = {self.d_head} must be even: rotary embedding turns pairs of channels")
        if self.mtp_depth >= self.seq_len:
            raise RecipeError(f"model.mtp_depth = {self.mtp_depth} must be below model.seq_len = {self.seq_len}")
        if self.latent is not None:
            _check_latent(self, self.latent)
        if self.experts is not None:
            _check_experts(self, self.experts)
        if self.yarn is not None:
            _check_yarn(self, self.yarn)

    @property
    def d_rotary(self) -> int:
        """Channels of a head that carry position."""
        return self.d_head if self.latent is None else self.latent.d_rope

    @property
    def d_value(self) -> int:
        """Channels of a head's value."""
        return self.d_head if self.latent is None else self.latent.d_value

    def experts_of(self, layer: int) -> ExpertConfig | None:
        """The mixture of experts of block `layer`, None where it has the dense MLP."""
        return self.experts if self.experts is not None and layer >= self.experts.n_dense_layers else None

    @property
    def n_expert_layers(self) -> int:
        """Blocks with a mixture of experts; multi-token prediction modules not counted."""
        return 0 if self.experts is None else self.n_layers - self.experts.n_dense_layers

    def softmax_scale(self) -> float:
        """Factor of query times key before the softmax.

        YaRN sharpens it by m^2 with m = 0.1 mscale ln(factor) + 1; cos and sin stay as they are
        (Source: arXiv 2412.19437, section 4.3; for models without latent attention it is the same rule).
        """
        m = 1.0 if self.yarn is None else 0.1 * self.yarn.mscale * math.log(self.yarn.factor) + 1.0
        return m * m * self.d_head**-0.5


def _check_latent(model: ModelConfig, latent: LatentConfig) -> None:
    if latent.d_rope % 2:
        raise RecipeError(
            f"model.latent.d_rope = {latent.d_rope} must be even: rotary embedding turns pairs of channels"
        )
    if model.d_head != latent.d_nope + latent.d_rope:
        raise RecipeError(
            f"model.d_head = {model.d_head} must be model.latent.d_nope + model.latent.d_rope = "
            f"{latent.d_nope + latent.d_rope}: a head's query and key are both parts; set d_head to that"
        )
    if model.n_kv_heads != model.n_heads:
        raise RecipeError(
            f"model.n_kv_heads = {model.n_kv_heads} must be model.n_heads = {model.n_heads} with [model.latent]: "
            f"every head has its own keys, made from the shared latent; d_kv_latent is what makes the cache small"
        )


def _check_experts(model: ModelConfig, experts: ExpertConfig) -> None:
    e = experts
    if e.n_dense_layers >= model.n_layers:
        raise RecipeError(
            f"model.experts.n_dense_layers = {e.n_dense_layers} must be below model.n_layers = "
            f"{model.n_layers}; leave [model.experts] out for a dense model"
        )
    if e.n_active > e.n_experts:
        raise RecipeError(f"model.experts.n_active = {e.n_active} must be at most n_experts = {e.n_experts}")
    if e.n_experts % e.n_groups:
        raise RecipeError(f"model.experts.n_groups = {e.n_groups} must divide n_experts = {e.n_experts}")
    if e.n_groups_kept > e.n_groups:
        raise RecipeError(f"model.experts.n_groups_kept = {e.n_groups_kept} must be at most n_groups = {e.n_groups}")
    held = e.n_groups_kept * (e.n_experts // e.n_groups)
    if held < e.n_active:
        raise RecipeError(
            f"model.experts.n_groups_kept = {e.n_groups_kept} groups hold {held} experts, a token uses n_active = "
            f"{e.n_active}; keep more groups"
        )
    if e.n_groups > 1 and e.group_score == "top_sum" and e.n_active % e.n_groups_kept:
        raise RecipeError(
            f"model.experts.n_active = {e.n_active} must be a multiple of n_groups_kept = {e.n_groups_kept}: a group's "
            f'score is the sum of its n_active / n_groups_kept best ones; or set group_score = "max"'
        )


def _check_yarn(model: ModelConfig, yarn: YarnConfig) -> None:
    if yarn.factor <= 1:
        raise RecipeError(f"model.yarn.factor = {yarn.factor} must be above 1; leave [model.yarn] out for no extension")
    if yarn.original_seq_len >= model.seq_len:
        raise RecipeError(
            f"model.yarn.original_seq_len = {yarn.original_seq_len} must be below model.seq_len = "
            f"{model.seq_len}: frequencies change only for contexts longer than trained; leave [model.yarn] out before"
        )
    if yarn.beta_slow >= yarn.beta_fast:
        raise RecipeError(
            f"model.yarn.beta_slow = {yarn.beta_slow} must be below beta_fast = {yarn.beta_fast}; "
            f"the paper's values are 1 and 32"
        )


def swiglu_width(d_model: int, multiple: int = 256) -> int:
    """8/3 d_model rounded up to a multiple (Source: widths 11008 and 22016 of the released 7B and 67B configs)."""
    return -(-8 * d_model // (3 * multiple)) * multiple
