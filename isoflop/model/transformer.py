"""The model, read top to bottom: norm, rotary, attention, MLP, block, transformer. Training and decoding share it.

Dense DeepSeek LLM (arXiv 2401.02954, section 2.2): pre-norm RMSNorm, SwiGLU, rotary embedding, multi-head or
grouped-query attention, no biases, untied head, every weight drawn from N(0, init_std^2).

Shapes: B batch, T tokens, D d_model, H query heads, G key/value heads, C channels of a head, F d_ff, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isoflop.model.attention import Cache, attend
from isoflop.model.config import ModelConfig
from isoflop.model.loss import chunked_cross_entropy
from isoflop.numerics.linear import Linear


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the mean square in float32."""

    def __init__(self, d_model: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.eps = eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        wide = torch.promote_types(x_BTD.dtype, torch.float32)  # statistics at least in float32
        return F.rms_norm(x_BTD.to(wide), (x_BTD.shape[-1],), self.weight, self.eps).to(x_BTD.dtype)


def rotary_table(n_positions: int, d_head: int, base: float, device=None) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary angles, [n_positions, d_head / 2] float32 each (half-split layout, as in HF Llama)."""
    frequency = base ** (-torch.arange(0, d_head, 2, dtype=torch.float32, device=device) / d_head)
    angle = torch.arange(n_positions, dtype=torch.float32, device=device)[:, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x_BTHC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """Turn channel i together with channel i + C/2 by the angle of its position."""
    wide = torch.promote_types(x_BTHC.dtype, torch.float32)  # bf16 angles would lose far positions
    first, second = x_BTHC.to(wide).chunk(2, dim=-1)
    cos_T1C, sin_T1C = cos_TC[:, None], sin_TC[:, None]
    turned = torch.cat((first * cos_T1C - second * sin_T1C, second * cos_T1C + first * sin_T1C), dim=-1)
    return turned.to(x_BTHC.dtype)


class Attention(nn.Module):
    """Causal self-attention; queries, keys and values come from one product."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.d_head = config.n_heads, config.n_kv_heads, config.d_head
        self.qkv = Linear(config.d_model, (config.n_heads + 2 * config.n_kv_heads) * config.d_head)
        self.out = Linear(config.n_heads * config.d_head, config.d_model)

    def forward(self, x_BTD: Tensor, cos_TC: Tensor, sin_TC: Tensor, cache: Cache | None = None) -> Tensor:
        batch, n_tokens, _ = x_BTD.shape
        heads_BTHC = self.qkv(x_BTD).view(batch, n_tokens, -1, self.d_head)
        # split, not slices: the backward of a split is one concatenation, that of a slice fills a zero tensor
        qk_BTHC, v_BTGC = heads_BTHC.split((self.n_heads + self.n_kv_heads, self.n_kv_heads), dim=2)
        turned_BHTC = rotate(qk_BTHC, cos_TC, sin_TC).transpose(1, 2)
        q_BHTC, k_BGTC = turned_BHTC.split((self.n_heads, self.n_kv_heads), dim=1)
        v_BGTC = v_BTGC.transpose(1, 2)
        if cache is not None:
            k_BGTC, v_BGTC = cache.append(k_BGTC, v_BGTC)
        mixed_BHTC = attend(q_BHTC, k_BGTC, v_BGTC)
        return self.out(mixed_BHTC.transpose(1, 2).reshape(batch, n_tokens, -1))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)); gate and up are one product."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_up = Linear(config.d_model, 2 * config.d_ff)
        self.down = Linear(config.d_ff, config.d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = self.gate_up(x_BTD).chunk(2, dim=-1)
        return self.down(F.silu(gate_BTF) * up_BTF)


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_BTD: Tensor, cos_TC: Tensor, sin_TC: Tensor, cache: Cache | None = None) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), cos_TC, sin_TC, cache)
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))


class Transformer(nn.Module):
    """Tokens in, hidden states, logits or loss out."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.float32):
        """`dtype` is the format of activations and products; parameters are always float32."""
        super().__init__()
        self.config, self.dtype = config, dtype
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = Linear(config.d_model, config.vocab_size)
        cos, sin = rotary_table(config.seq_len, config.d_head, config.rope_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw every weight from N(0, init_std^2); norms start at 1 (Source: arXiv 2401.02954, section 2.2).

        Drawn on the generator's device and copied, so that a seed means the same weights on CPU and GPU.
        """
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("norm.weight"):
                    parameter.fill_(1.0)
                else:
                    drawn = torch.empty(parameter.shape, device=generator.device)
                    parameter.copy_(drawn.normal_(0.0, self.config.init_std, generator=generator))

    def new_cache(self, batch: int, capacity: int | None = None) -> list[Cache]:
        """Empty caches for decoding `batch` sequences of at most `capacity` tokens (default: seq_len)."""
        config = self.config
        capacity = config.seq_len if capacity is None else capacity
        device = self.embedding.weight.device
        return [
            Cache(batch, config.n_kv_heads, capacity, config.d_head, dtype=self.dtype, device=device)
            for _ in range(config.n_layers)
        ]

    def forward(self, tokens_BT: Tensor, cache: list[Cache] | None = None) -> Tensor:
        """Hidden states after the final norm, [B, T, D]. With a cache the tokens continue what it holds."""
        start = cache[0].length if cache else 0
        end = start + tokens_BT.shape[1]
        assert end <= self.config.seq_len, f"{end} tokens, the model was built for {self.config.seq_len}"
        cos_TC, sin_TC = self.get_buffer("cos")[start:end], self.get_buffer("sin")[start:end]
        x_BTD = self.embedding(tokens_BT).to(self.dtype)
        for index, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, cos_TC, sin_TC, cache[index] if cache else None)
        return self.norm(x_BTD)

    def logits(self, tokens_BT: Tensor, cache: list[Cache] | None = None) -> Tensor:
        """Logits [B, T, V] in the compute dtype."""
        return self.head(self.forward(tokens_BT, cache))

    def loss_sum(self, tokens_BT: Tensor, targets_BT: Tensor, chunk_tokens: int = 4096) -> Tensor:
        """Sum over targets of the negative log-likelihood in nats, float32; targets below 0 are ignored."""
        hidden_BTD = self.forward(tokens_BT)
        return chunked_cross_entropy(
            hidden_BTD.flatten(0, 1), self.head.weight, targets_BT.flatten(), chunk_tokens=chunk_tokens
        )
