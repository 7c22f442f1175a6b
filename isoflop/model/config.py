"""Sizes of a model, and nothing else. No torch here: planning a model must not cost an import of it."""

from dataclasses import dataclass

from isoflop.errors import RecipeError


@dataclass(frozen=True)
class ModelConfig:
    """A dense decoder-only transformer in the style of DeepSeek LLM (arXiv 2401.02954, section 2.2)."""

    n_layers: int
    """Blocks, at least 1."""
    d_model: int
    """Width of the residual stream."""
    n_heads: int
    """Query heads."""
    n_kv_heads: int
    """Key and value heads; equal to n_heads is MHA, fewer is GQA; must divide n_heads."""
    d_head: int
    """Channels of one head, even (rotary pairs)."""
    d_ff: int
    """Inner width of the SwiGLU; the paper's rule is 8/3 d_model rounded up to a multiple of 256."""
    vocab_size: int
    """Rows of the embedding and of the untied head, padding included."""
    seq_len: int
    """Longest sequence in tokens."""
    rope_base: float = 10000.0
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-6
    """Added to the mean square in RMSNorm."""
    init_std: float = 0.006
    """Standard deviation of every initial weight (paper: 0.006; the choice for tiny widths is in docs/scaling.md)."""

    def __post_init__(self) -> None:
        for name in ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_ff", "vocab_size", "seq_len"):
            value = getattr(self, name)
            if value < 1:
                raise RecipeError(f"model.{name} = {value} must be at least 1")
        if self.n_heads % self.n_kv_heads:
            raise RecipeError(
                f"model.n_kv_heads = {self.n_kv_heads} must divide model.n_heads = {self.n_heads}; "
                f"n_kv_heads = n_heads is plain multi-head attention"
            )
        if self.d_head % 2:
            raise RecipeError(f"model.d_head = {self.d_head} must be even: rotary embedding turns pairs of channels")
        if self.init_std <= 0:
            raise RecipeError(f"model.init_std = {self.init_std} must be above 0; the paper's value is 0.006")


def swiglu_width(d_model: int, multiple: int = 256) -> int:
    """8/3 d_model rounded up to a multiple (Source: widths 11008 and 22016 of the released 7B and 67B configs)."""
    return -(-8 * d_model // (3 * multiple)) * multiple
