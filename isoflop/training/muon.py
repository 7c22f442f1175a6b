"""Muon for the matrices of the blocks, AdamW for everything else, as one optimizer.

Muon replaces the momentum of a matrix by the nearest matrix with equal singular values (five Newton-Schulz steps in
bf16) and takes a step of a fixed size along it. It is `torch.optim.Muon`, step by step, with two things added: experts
stacked in one tensor [E, F, D] and layers that join several matrices in one product (queries, keys and values; gate and
up) are orthogonalised matrix by matrix; and on a GPU all matrices of one shape go through the iteration as one batch,
with the rate on the device, so that a step is few launches and can be captured in a CUDA graph.

The step is `0.2 sqrt(max(rows, columns))` times the rate, so that its root mean square is that of AdamW's and one rate,
one schedule and one weight decay serve both (arXiv 2502.16982, section 2.2); decay is decoupled, rate x weight_decay,
as AdamW's. Embedding, head, router and norms stay with AdamW (as there; the router is our choice).

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), coefficients and momentum.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.model.experts import Experts
from isoflop.model.transformer import MLP, Attention, Transformer
from isoflop.numerics.linear import Linear

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the Newton-Schulz polynomial (Jordan et al. 2024, as torch.optim.Muon has them)."""
N_STEPS = 5
EPS = 1e-7


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` for some parameters, fused AdamW for the others."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        adamw: torch.optim.AdamW,
        *,
        learning_rate: float,
        weight_decay: float,
        momentum: float = 0.95,
        parts: Callable[[nn.Parameter], list[int]] = lambda parameter: [parameter.shape[-2]],
    ):
        """`parts(parameter)`: rows of each matrix that a parameter [..., rows, columns] joins."""
        settings = {"lr": learning_rate, "weight_decay": weight_decay, "momentum": momentum, "fused": True}
        super().__init__(list(matrices), settings)
        self.adamw, self._parts = adamw, parts
        self.matrices: list[nn.Parameter] = self.param_groups[0]["params"]
        self.param_groups += adamw.param_groups  # the same dictionaries: one rate, set for both
        adamw.state = self.state  # one state, which checkpoints read

    def prepare(self, parameter: nn.Parameter) -> None:
        """Make the state that the first step would make, for a graph that cannot."""
        self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        updates: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            self.prepare(parameter)
            buffer = self.state[parameter]["momentum_buffer"]
            buffer.lerp_(parameter.grad, 1 - group["momentum"])
            update = parameter.grad.lerp(buffer, group["momentum"])  # Nesterov's
            sizes = self._parts(parameter)
            for part, step in zip(parameter.split(sizes, -2), update.split(sizes, -2), strict=True):
                rows, columns = part.shape[-2:]
                updates.setdefault((rows, columns), []).append((part.view(-1, rows, columns), step))
        for shape, pairs in updates.items():
            _apply(shape, pairs, group["lr"], group["weight_decay"])
        self.adamw.step()


def _apply(
    shape: tuple[int, int], pairs: list[tuple[Tensor, Tensor]], rate: float | Tensor, weight_decay: float
) -> None:
    """Decay and move all matrices of one shape."""
    ratio = 0.2 * math.sqrt(max(shape))
    matrices = [matrix for parts, _ in pairs for matrix in parts.unbind(0)]
    found = orthogonalise(torch.cat([step.reshape(-1, *shape).bfloat16() for _, step in pairs]))
    if isinstance(rate, Tensor):
        torch._foreach_mul_(matrices, 1 - rate * weight_decay)
        torch._foreach_sub_(matrices, list((found.float() * (rate * ratio)).unbind(0)))
        return
    for matrix, step in zip(matrices, found.unbind(0), strict=True):
        matrix.mul_(1 - rate * weight_decay)
        matrix.add_(step, alpha=-rate * ratio)


def orthogonalise(matrices_NRC: Tensor) -> Tensor:
    """Near the orthogonal factor of each bf16 matrix: singular values between about 0.7 and 1.2.

    One batch on a GPU; one by one on a CPU, whose batched bf16 products are slow.
    """
    tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    x_NRC = matrices_NRC.mT if tall else matrices_NRC
    if x_NRC.is_cuda:
        sizes = torch.linalg.vector_norm(x_NRC, dim=(1, 2), keepdim=True)
        found = _iterated(x_NRC / sizes.clamp(min=EPS), torch.bmm, torch.baddbmm)
    else:
        found = torch.stack([_iterated(x / x.norm().clamp(min=EPS), torch.mm, torch.addmm) for x in x_NRC.unbind(0)])
    return found.mT if tall else found


def _iterated(x: Tensor, product: Callable[..., Tensor], added: Callable[..., Tensor]) -> Tensor:
    a, b, c = COEFFICIENTS
    for _ in range(N_STEPS):
        gram = product(x, x.mT)
        x = added(x, added(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def muon(
    model: Transformer, *, learning_rate: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> MuonWithAdamW:
    """Muon for every matrix inside a block, AdamW with the paper's settings for the rest of a language model."""
    sizes: dict[nn.Parameter, list[int]] = {}
    for block in model.all_blocks():
        for module in block.modules():
            if isinstance(module, Linear):
                sizes[module.weight] = [module.weight.shape[0]]
            elif isinstance(module, Experts):
                sizes[module.down] = [module.down.shape[1]]
                sizes[module.gate_up] = _halves(module.gate_up)
        for module in block.modules():  # layers that join several matrices
            if isinstance(module, Attention):
                heads = (module.n_heads, module.n_kv_heads, module.n_kv_heads)
                sizes[module.qkv.weight] = [n * module.d_head for n in heads]
            elif isinstance(module, MLP):
                sizes[module.gate_up.weight] = _halves(module.gate_up.weight)
    others = [p for p in model.parameters() if p not in sizes]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=True)
    return MuonWithAdamW(
        sizes, adamw, learning_rate=learning_rate, weight_decay=weight_decay, parts=lambda parameter: sizes[parameter]
    )


def _halves(weight: Tensor) -> list[int]:
    return [weight.shape[-2] // 2] * 2
