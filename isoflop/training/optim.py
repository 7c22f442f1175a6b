"""AdamW with the paper's settings, which tensors are decayed, and the choice of another optimizer."""

import torch
from torch import nn

from isoflop.model.transformer import Transformer
from isoflop.training.muon import MuonWithAdamW, muon


def adamw(
    model: nn.Module, *, learning_rate: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.AdamW:
    """Fused AdamW in float32 of what asks for gradients. Matrices are decayed, norm weights are not (our choice).

    Source: beta1 0.9, beta2 0.95, weight decay 0.1 are arXiv 2401.02954, section 2.3; eps is not stated there.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups = [
        {"params": [p for p in named.values() if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in named.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=True)


def optimizer_of(
    model: Transformer,
    name: str | None,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> torch.optim.AdamW | MuonWithAdamW:
    """`[train] optimizer` of a language model; None is AdamW."""
    make = muon if name == "muon" else adamw
    return make(model, learning_rate=learning_rate, betas=betas, eps=eps, weight_decay=weight_decay)


def prepare_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
    """Moments as the first step would make them, for steps that are captured in a CUDA graph."""
    if isinstance(optimizer, MuonWithAdamW) and any(parameter is matrix for matrix in optimizer.matrices):
        optimizer.prepare(parameter)
        return
    state = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
