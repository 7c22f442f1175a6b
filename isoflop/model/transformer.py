"""The model, read top to bottom: norm, rotary, attention, MLP, block, transformer. Training and decoding share it.

Dense DeepSeek LLM (arXiv 2401.02954, section 2.2): pre-norm RMSNorm, SwiGLU, rotary embedding, multi-head or
grouped-query attention, no biases, untied head, every weight drawn from N(0, init_std^2). DeepSeek-V3 (arXiv
2412.19437, section 2) is the same with latent attention, a mixture of experts in place of most MLPs (experts.py), and
modules that predict tokens further ahead, used in training only.

Shapes: B batch, T tokens, S tokens attended to, D d_model, H query heads, G key/value heads, C channels of a head,
L channels of a latent, F d_ff, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from isoflop.model.accounting import logit_rows
from isoflop.model.attention import Spans, attend, document_mask, document_spans, takes_spans
from isoflop.model.config import ExpertConfig, LatentConfig, ModelConfig, YarnConfig
from isoflop.model.decode import Cached, LatentDecoding
from isoflop.model.experts import Experts, MixtureOfExperts, Router, Routing
from isoflop.model.loss import chunked_cross_entropy, layer_cross_entropy
from isoflop.model.pages import Cache, LayerPages, Step
from isoflop.numerics.embedding import Embedding
from isoflop.numerics.gated import gated_product
from isoflop.numerics.heads import turned_heads, turned_latent_heads
from isoflop.numerics.joined import normed, rms_norm
from isoflop.numerics.linear import Linear

Seen = Tensor | Spans | Cached | None
"""What a layer's tokens attend to: None: all before them; else their documents (a mask or spans), or a step's pages."""


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the mean square in float32."""

    def __init__(self, d_model: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.eps = eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        return rms_norm(x_BTD, self.weight, self.eps)

    def joined(self, x_BTD: Tensor, update_BTD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The residual stream with an update added to it, and its norm."""
        return normed(x_BTD, update_BTD, self.weight, self.eps)


def rotary_table(
    n_positions: int, d_head: int, base: float, yarn: YarnConfig | None = None, device=None
) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary angles, [n_positions, d_head / 2] float32 each (half-split layout, as in HF Llama)."""
    frequency = base ** (-torch.arange(0, d_head, 2, dtype=torch.float32, device=device) / d_head)
    if yarn is not None:
        slowed = yarn_share(d_head, base, yarn, device)
        frequency = frequency * (1 - slowed) + frequency / yarn.factor * slowed
    angle = torch.arange(n_positions, dtype=torch.float32, device=device)[:, None] * frequency
    return angle.cos(), angle.sin()


def yarn_share(d_head: int, base: float, yarn: YarnConfig, device=None) -> Tensor:
    """Share of each rotary pair, 0 to 1, that is slowed by `yarn.factor`: fast pairs 0, slow ones 1, a ramp between.

    Source: arXiv 2412.19437, section 4.3 (YaRN, arXiv 2309.00071, section 3.2); bounds rounded outwards.
    """

    def pair_turning(times: float) -> float:
        """The pair, counted from the fastest, that turns `times` times over the original context."""
        return d_head * math.log(yarn.original_seq_len / (2 * math.pi * times)) / (2 * math.log(base))

    low = max(math.floor(pair_turning(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_turning(yarn.beta_slow)), d_head - 1)
    pairs = torch.arange(d_head // 2, dtype=torch.float32, device=device)
    return ((pairs - low) / max(high - low, 1e-3)).clamp(0, 1)  # a step where both bounds meet


class Attention(nn.Module):
    """Causal self-attention; queries, keys and values come from one product."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.d_head = config.n_heads, config.n_kv_heads, config.d_head
        self.qkv = Linear(config.d_model, (config.n_heads + 2 * config.n_kv_heads) * config.d_head)
        self.out = Linear(config.n_heads * config.d_head, config.d_model)
        self.scale = None if config.yarn is None else config.softmax_scale()

    def forward(self, x_BTD: Tensor, cos_TC: Tensor, sin_TC: Tensor, seen: Seen = None) -> Tensor:
        batch, n_tokens, _ = x_BTD.shape
        heads_BTHC = self.qkv(x_BTD).view(batch, n_tokens, -1, self.d_head)
        if isinstance(seen, Cached):
            q_NHC = seen.pages.write_heads(seen.step, heads_BTHC[0], cos_TC, sin_TC)
            return self.out(seen.pages.attend(seen.step, q_NHC, self.scale).flatten(1))[None]
        q_BHTC, k_BGTC, v_BGTC = turned_heads(heads_BTHC, self.n_heads, self.n_kv_heads, cos_TC, sin_TC)
        mixed_BHTC = attend(q_BHTC, k_BGTC, v_BGTC, self.scale, seen)
        return self.out(mixed_BHTC.transpose(1, 2).reshape(batch, n_tokens, -1))


class LatentAttention(nn.Module):
    """Multi-head latent attention: every head's keys and values are made from one narrow latent per token.

    Only that latent and one rotary key are cached (see decode.py).
    Source: arXiv 2412.19437, section 2.1.1, eq. 1 to 11; arXiv 2405.04434, section 2.1.
    """

    def __init__(self, config: ModelConfig, latent: LatentConfig):
        super().__init__()
        self.n_heads, self.latent, self.scale = config.n_heads, latent, config.softmax_scale()
        d_queries = config.n_heads * config.d_head
        if latent.d_q_latent:
            self.q_down = Linear(config.d_model, latent.d_q_latent)
            self.q_norm = RMSNorm(latent.d_q_latent, config.norm_eps)
            self.q_up = Linear(latent.d_q_latent, d_queries)
        else:
            self.q = Linear(config.d_model, d_queries)
        self.kv_down = Linear(config.d_model, latent.d_kv_latent + latent.d_rope)
        self.kv_norm = RMSNorm(latent.d_kv_latent, config.norm_eps)
        self.kv_up = Linear(latent.d_kv_latent, config.n_heads * (latent.d_nope + latent.d_value))
        self.out = Linear(config.n_heads * latent.d_value, config.d_model)

    def forward(self, x_BTD: Tensor, cos_TC: Tensor, sin_TC: Tensor, seen: Seen = None) -> Tensor:
        batch, n_tokens, _ = x_BTD.shape
        sizes = self.latent
        q_BTC = self.q_up(self.q_norm(self.q_down(x_BTD))) if sizes.d_q_latent else self.q(x_BTD)
        q_BTHC = q_BTC.view(batch, n_tokens, self.n_heads, -1)
        latent_BTL, k_rope_BTC = self.kv_down(x_BTD).split((sizes.d_kv_latent, sizes.d_rope), -1)
        latent_BTL = self.kv_norm(latent_BTL)
        if isinstance(seen, Cached):
            decoding = LatentDecoding(sizes, self.scale, self.kv_up)
            mixed_NHC = decoding.attend(seen, q_BTHC[0], latent_BTL[0], k_rope_BTC[0], cos_TC, sin_TC)
            return self.out(mixed_NHC.flatten(1))[None]
        kv_BTHC = self.kv_up(latent_BTL).unflatten(-1, (self.n_heads, -1))
        heads = turned_latent_heads(q_BTHC, kv_BTHC, k_rope_BTC, sizes.d_nope, cos_TC, sin_TC)
        mixed_BHTC = attend(*heads, self.scale, seen)
        return self.out(mixed_BHTC.transpose(1, 2).reshape(batch, n_tokens, -1))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)); gate and up are one product."""

    def __init__(self, d_model: int, d_ff: int):
        super().__init__()
        self.gate_up = Linear(d_model, 2 * d_ff)
        self.down = Linear(d_ff, d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return gated_product(x_BTD, self.gate_up, self.down)


def _mixture(d_model: int, experts: ExpertConfig) -> MixtureOfExperts:
    shared = MLP(d_model, experts.n_shared * experts.d_expert) if experts.n_shared else None
    return MixtureOfExperts(d_model, experts, shared)


class Block(nn.Module):
    """Pre-norm residual block; what its MLP adds to the stream is handed on, for the next norm to add as it reads."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        d, latent, experts = config.d_model, config.latent, config.experts_of(layer)
        self.attention_norm = RMSNorm(d, config.norm_eps)
        self.attention = Attention(config) if latent is None else LatentAttention(config, latent)
        self.mlp_norm = RMSNorm(d, config.norm_eps)
        self.mlp = MLP(d, config.d_ff) if experts is None else _mixture(d, experts)

    def forward(
        self, x_BTD: Tensor, update_BTD: Tensor | None, cos_TC: Tensor, sin_TC: Tensor, seen: Seen = None
    ) -> tuple[Tensor, Tensor, Routing | None]:
        """The stream, what is to be added to it, and where experts' tokens went, None without experts."""
        x_BTD, normed_BTD = self.attention_norm.joined(x_BTD, update_BTD)
        x_BTD, normed_BTD = self.mlp_norm.joined(x_BTD, self.attention(normed_BTD, cos_TC, sin_TC, seen))
        if isinstance(self.mlp, MixtureOfExperts):
            return x_BTD, *self.mlp(normed_BTD)
        return x_BTD, self.mlp(normed_BTD), None


class MTPModule(nn.Module):
    """One multi-token prediction module: what the head reads at depth k - 1, and token i + k, give depth k at i.

    The released weights' choices: embedding before hidden state in the joined input, a norm of its own before the
    shared head. Ours, not stated anywhere: each depth starts from what the head reads at the depth before, that is
    after the final norm. Source: arXiv 2412.19437, section 2.2, eq. 21 to 23.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embedding_norm = RMSNorm(config.d_model, config.norm_eps)
        self.hidden_norm = RMSNorm(config.d_model, config.norm_eps)
        self.project = Linear(2 * config.d_model, config.d_model)
        self.block = Block(config, config.n_layers - 1)
        self.norm = RMSNorm(config.d_model, config.norm_eps)

    def forward(
        self, hidden_BTD: Tensor, embedded_BTD: Tensor, cos_TC: Tensor, sin_TC: Tensor, seen: Seen = None
    ) -> tuple[Tensor, Routing | None]:
        joined_BTD = torch.cat((self.embedding_norm(embedded_BTD), self.hidden_norm(hidden_BTD)), dim=-1)
        x_BTD, update_BTD, routing = self.block(self.project(joined_BTD), None, cos_TC, sin_TC, seen)
        return self.norm.joined(x_BTD, update_BTD)[1], routing


class Losses(NamedTuple):
    """What one pass over a micro-batch gives training to add up."""

    nats: Tensor
    """Sum of the next-token loss, float32: the loss that is reported and predicted."""
    mtp_nats: list[Tensor]
    """The same of each multi-token prediction module."""
    routings: list[Routing]
    """Of every layer with experts, from the bottom, the prediction modules' last."""


class Transformer(nn.Module):
    """Tokens in, hidden states, logits or loss out."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.float32, document_start: int | None = None):
        """`dtype` is the format of activations and products; parameters are always float32.

        Given the token that begins a document, `document_start`, a token attends to its own document only (except
        in cached decoding, which holds one document); without it, to all before it.
        """
        super().__init__()
        self.config, self.dtype, self.document_start = config, dtype, document_start
        self.embedding = Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = Linear(config.d_model, config.vocab_size)
        self.mtp = nn.ModuleList(MTPModule(config) for _ in range(config.mtp_depth))
        cos, sin = rotary_table(config.seq_len, config.d_rotary, config.rope_base, config.yarn)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw every weight from N(0, init_std^2); norms start at 1, selection biases at 0.

        Source: arXiv 2401.02954, section 2.2; arXiv 2412.19437, sections 2.1.2 and 4.2.

        Drawn on the generator's device and copied, so that a seed means the same weights on CPU and GPU.
        """
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("norm.weight"):
                    parameter.fill_(1.0)
                else:
                    drawn = torch.empty(parameter.shape, device=generator.device)
                    parameter.copy_(drawn.normal_(0.0, self.config.init_std, generator=generator))
            for name, buffer in self.named_buffers():
                if name.endswith("router.bias"):
                    buffer.zero_()

    def all_blocks(self) -> list[Block]:
        """The model's own, from the bottom, then those of the prediction modules."""
        return [module for module in self.modules() if isinstance(module, Block)]

    def routers(self) -> list[Router]:
        """Of every layer with experts, in the order of `Losses.routings`."""
        return [module for module in self.modules() if isinstance(module, Router)]

    def drop_mtp(self) -> None:
        """Remove the multi-token prediction modules: the main model never looks at them."""
        self.mtp = nn.ModuleList()
        self.config = dataclasses.replace(self.config, mtp_depth=0)

    def new_cache(self, batch: int, capacity: int | None = None) -> Cache:
        """Empty pages for decoding `batch` sequences of at most `capacity` tokens (default: seq_len)."""
        device = self.embedding.weight.device
        return Cache(self.config, batch, capacity or self.config.seq_len, dtype=self.dtype, device=device)

    def forward(self, tokens_BT: Tensor, cache: Cache | None = None, *, documents_BT: Tensor | None = None) -> Tensor:
        """Hidden states after the final norm, [B, T, D]. With a cache the tokens continue what it holds.

        Numbers of documents, `documents_BT`, say which tokens of a row see each other, whatever tokens they begin with.
        """
        if cache is None:
            return self._run(tokens_BT, documents_BT)[0]
        step = cache.extend(tokens_BT.shape[1])
        return self.step(tokens_BT.flatten(), step, cache.layers).view(*tokens_BT.shape, -1)

    def _run(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> tuple[Tensor, list[Routing]]:
        cos_TC, sin_TC = self._angles(tokens_BT.shape[1])
        seen = self._documents(tokens_BT, documents_BT)
        x_BTD, update_BTD = self.embedding.rows(tokens_BT, self.dtype), None
        routings = []
        for block in self.blocks:
            x_BTD, update_BTD, routing = block(x_BTD, update_BTD, cos_TC, sin_TC, seen)
            if routing is not None:
                routings.append(routing)
        return self.norm.joined(x_BTD, update_BTD)[1], routings

    def step(self, tokens_N: Tensor, step: Step, layers: Sequence[LayerPages]) -> Tensor:
        """Hidden states after the final norm of a step's tokens, [N, D]; what they leave behind is written to pages."""
        cos_NC, sin_NC = self.angles_at(step.positions_N)
        x_BND, update_BND = self.embedding.rows(tokens_N[None], self.dtype), None
        for block, pages in zip(self.blocks, layers):
            x_BND, update_BND, _ = block(x_BND, update_BND, cos_NC, sin_NC, Cached(pages, step))
        return self.norm.joined(x_BND, update_BND)[1][0]

    def mtp_step(self, depth: int, hidden_ND: Tensor, tokens_N: Tensor, step: Step, pages: LayerPages) -> Tensor:
        """`mtp_hidden` of one depth for a step: what the head reads, [N, D].

        Position i takes what the head reads at depth - 1, `hidden_ND`, and token i + depth, as in training.
        """
        cos_NC, sin_NC = self.angles_at(step.positions_N)
        embedded_BND = self.embedding.rows(tokens_N[None], self.dtype)
        return self.mtp[depth - 1](hidden_ND[None], embedded_BND, cos_NC, sin_NC, Cached(pages, step))[0][0]

    def cast_once(self) -> None:
        """Keep the weights of products in the dtype of the activations: no step casts them again.

        Norms, routers and layers with a number format of their own keep float32. For models that are only asked.
        """
        self.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, (Linear, Experts, nn.Embedding)) and getattr(module, "numerics", None) is None:
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(self.dtype)

    def _angles(self, end: int) -> tuple[Tensor, Tensor]:
        assert end <= self.config.seq_len, f"{end} tokens, the model was built for {self.config.seq_len}"
        return self.get_buffer("cos")[:end], self.get_buffer("sin")[:end]

    def angles_at(self, positions_N: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.get_buffer("cos"), self.get_buffer("sin")
        return cos.index_select(0, positions_N), sin.index_select(0, positions_N)

    def _documents(self, tokens_BT: Tensor, documents_BT: Tensor | None) -> Tensor | Spans | None:
        """Which tokens see each other; None is the plain causal mask, which has the fastest kernels."""
        if documents_BT is not None:
            plain = self.config.latent is None
            if plain and takes_spans(documents_BT.device, self.dtype, self.config.d_head):
                return document_spans(documents_BT)
            return document_mask(documents_BT)
        if self.document_start is None:
            return None
        return document_mask((tokens_BT == self.document_start).cumsum(1))

    def mtp_hidden(
        self, hidden_BTD: Tensor, tokens_BT: Tensor, documents_BT: Tensor | None = None
    ) -> tuple[list[Tensor], list[Routing]]:
        """What the head reads for tokens further ahead: of depth k, position i predicts token i + k + 1.

        Shapes: hidden [B, T, D] as `forward` returned it for these tokens; depth k gives [B, T - k, D].
        """
        depths, routings = [], []
        for depth, module in enumerate(self.mtp, start=1):
            embedded_BTD = self.embedding.rows(tokens_BT[:, depth:], self.dtype)
            cos_TC, sin_TC = self._angles(embedded_BTD.shape[1])
            seen = self._documents(tokens_BT[:, :-depth], None if documents_BT is None else documents_BT[:, :-depth])
            hidden_BTD, routing = module(hidden_BTD[:, :-1], embedded_BTD, cos_TC, sin_TC, seen)
            depths.append(hidden_BTD)
            if routing is not None:
                routings.append(routing)
        return depths, routings

    def logits(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits [B, T, V] in the compute dtype."""
        return self.head(self.forward(tokens_BT, cache))

    def loss_sum(self, tokens_BT: Tensor, targets_BT: Tensor, chunk_tokens: int | None = None) -> Tensor:
        """Sum over targets of the negative log-likelihood in nats, float32; targets below 0 are ignored."""
        return self._nll(self.forward(tokens_BT), targets_BT, chunk_tokens)

    def losses(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        chunk_tokens: int | None = None,
        *,
        with_mtp: bool = True,
        documents_BT: Tensor | None = None,
    ) -> Losses:
        """`loss_sum` with everything that training adds to it: further tokens' losses and where tokens were sent.

        Depth k scores targets from position k on: T - k of a sequence's T, and with `documents_BT` only those that
        are in the document of the position that predicts them.
        """
        hidden_BTD, routings = self._run(tokens_BT, documents_BT=documents_BT)
        nats = self._nll(hidden_BTD, targets_BT, chunk_tokens)
        if not with_mtp:
            return Losses(nats, [], routings)
        depths, mtp_routings = self.mtp_hidden(hidden_BTD, tokens_BT, documents_BT)
        mtp_nats = []
        for k, mtp_BTD in enumerate(depths, start=1):
            ahead_BT = targets_BT[:, k:]
            if documents_BT is not None:
                ahead_BT = ahead_BT.where(documents_BT[:, k:] == documents_BT[:, :-k], -1)
            mtp_nats.append(self._nll(mtp_BTD, ahead_BT, chunk_tokens, k))
        return Losses(nats, mtp_nats, routings + mtp_routings)

    def _nll(self, hidden_BTD: Tensor, targets_BT: Tensor, chunk_tokens: int | None, depth: int = 0) -> Tensor:
        hidden_RD, targets_R = hidden_BTD.flatten(0, 1), targets_BT.flatten()
        if self.head.numerics is not None:
            return layer_cross_entropy(self.head, hidden_RD, targets_R, chunk_tokens=chunk_tokens or 4096, depth=depth)
        weight, held = self.head.weight, self.head.held[0] if self.head.held else None
        # On a CPU the order of a sum is part of old results.
        chunk_tokens = chunk_tokens or (logit_rows(self.config, len(hidden_RD)) if hidden_RD.is_cuda else 4096)
        return chunked_cross_entropy(hidden_RD, weight, targets_R, chunk_tokens=chunk_tokens, held=held)
