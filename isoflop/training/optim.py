"""AdamW with the paper's settings, and which tensors are decayed."""

import torch
from torch import nn


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
