"""The mixture of experts: who gets a token, what the experts make of it, and what balancing needs to know about it.

DeepSeekMoE (arXiv 2401.06066) as V2 and V3 route it (arXiv 2405.04434, section 2.1.2; arXiv 2412.19437, section
2.1.2): many narrow experts, some of them shared by all tokens; affinities in float32; groups of experts of which a
token may use a few; a selection bias that balancing moves and that never weighs an output.

Shapes: B batch, T tokens, D d_model, E experts, A active experts, R = B T A rows, F d_expert, N groups.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from isoflop.model.config import ExpertConfig
from isoflop.model.dispatch import arrange, grouped_product, permute, permute_choices, unpermute
from isoflop.numerics.fp8_whole import Fp8WholeProduct
from isoflop.numerics.joined import swiglu, wide_product
from isoflop.numerics.linear import Held, MatmulBackend


class Routing(NamedTuple):
    """What one layer decided, for balancing; nothing of it is used further by the model."""

    affinity_BTE: Tensor
    """Of every token for every expert, without bias, at least float32; carries gradients to the router."""
    chosen_BTA: Tensor
    """Experts that each token went to."""
    load_E: Tensor
    """Rows of each expert."""


class Router(nn.Module):
    """Affinity, selection and weights of the chosen experts."""

    bias: Tensor

    def __init__(self, d_model: int, config: ExpertConfig):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_experts, d_model))
        if config.selection_bias:  # moved by load alone, so not a parameter; part of every checkpoint
            self.register_buffer("bias", torch.zeros(config.n_experts))

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights [T, A], chosen experts [T, A] and affinities [T, E]; everything in float32 at least.

        Source: arXiv 2412.19437, eq. 13 to 16 and section 2.1.2 (node-limited routing).
        """
        config = self.config
        logits_TE = wide_product(x_TD, self.weight)  # bf16 scores would tie, and ties are routing noise
        affinity_TE = logits_TE.sigmoid() if config.affinity == "sigmoid" else logits_TE.softmax(-1)
        chosen_TA = select(affinity_TE.detach(), self.bias if config.selection_bias else None, config)
        weights_TA = affinity_TE.gather(1, chosen_TA)  # the bias chooses, it does not weigh
        if config.normalise:
            weights_TA = weights_TA / (weights_TA.sum(-1, keepdim=True) + 1e-20)  # all sigmoids may underflow
        return weights_TA * config.routed_scale, chosen_TA, affinity_TE


def select(affinity_TE: Tensor, bias_E: Tensor | None, config: ExpertConfig) -> Tensor:
    """Experts with the highest affinity + bias within the groups that a token may use, [T, A]."""
    score_TE = affinity_TE if bias_E is None else affinity_TE + bias_E
    if config.n_groups > 1:
        score_TNE = score_TE.unflatten(1, (config.n_groups, -1))
        n_best = config.n_active // config.n_groups_kept if config.group_score == "top_sum" else 1
        group_TN = score_TNE.topk(n_best, dim=-1).values.sum(-1)
        kept_TN = group_TN.topk(config.n_groups_kept, dim=-1).indices
        discarded_TN = torch.ones_like(group_TN, dtype=torch.bool).scatter_(1, kept_TN, False)
        # -inf and not 0: a biased score may be below 0, and 0 would then win
        score_TE = score_TNE.masked_fill(discarded_TN[..., None], float("-inf")).flatten(1)
    return score_TE.topk(config.n_active, dim=-1).indices


class Experts(nn.Module):
    """The routed experts' SwiGLUs, one tensor per product."""

    def __init__(self, d_model: int, config: ExpertConfig):
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(config.n_experts, 2 * config.d_expert, d_model))
        self.down = nn.Parameter(torch.empty(config.n_experts, d_model, config.d_expert))
        self.numerics: MatmulBackend | None = None
        self.held: tuple[Held, ...] = ()

    def forward(
        self, x_TD: Tensor, weights_TA: Tensor, chosen_TA: Tensor, shared_TD: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Weighted sum over the chosen experts plus what all tokens share [T, D], and the rows of each expert [E]."""
        at = arrange(chosen_TA, len(self.gate_up))
        if isinstance(self.numerics, Fp8WholeProduct) and x_TD.is_cuda:
            choices = (weights_TA, at.slot_R, at.ends_E)
            y_TD = self.numerics.experts(x_TD, choices, (self.gate_up, self.down), shared_TD)  # type: ignore[call-arg]
            if y_TD is not None:
                return y_TD, at.load_E()
        first, last = (None, None) if torch.compiler.is_compiling() or not self.held else self.held
        gate_up_RF = grouped_product(permute(x_TD, at), self.gate_up, at.ends_E, self.numerics, held=first)
        # Weighing before the last product, which is linear, spares a table of [R, D] for the backward pass.
        inner_RF = swiglu(gate_up_RF, permute_choices(weights_TA, at))
        y_RD = grouped_product(inner_RF, self.down, at.ends_E, self.numerics, first_part=len(self.down), held=last)
        return unpermute(y_RD, at, shared_TD), at.load_E()


class MixtureOfExperts(nn.Module):
    """Routed experts plus the shared ones that every token uses."""

    def __init__(self, d_model: int, config: ExpertConfig, shared: nn.Module | None):
        super().__init__()
        self.router = Router(d_model, config)
        self.experts = Experts(d_model, config)
        self.shared = shared

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Routing]:
        batch, n_tokens, _ = x_BTD.shape
        x_TD = x_BTD.flatten(0, 1)
        weights_TA, chosen_TA, affinity_TE = self.router(x_TD)
        shared_TD = None if self.shared is None else self.shared(x_BTD).flatten(0, 1)
        y_TD, load_E = self.experts(x_TD, weights_TA, chosen_TA, shared_TD)
        return y_TD.view_as(x_BTD), Routing(
            affinity_TE.view(batch, n_tokens, -1), chosen_TA.view(batch, n_tokens, -1), load_E
        )
