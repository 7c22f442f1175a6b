"""A whole optimizer step of a small model as one CUDA graph.

A model of a few million parameters keeps an H100 busy for a millisecond a step, but launching its kernels one by one
takes ten. Captured once and replayed, the same kernels run without the launches (docs/log.md has the numbers).
"""

import torch
from torch import Tensor, nn

from isoflop.model.accounting import count_parameters
from isoflop.model.dispatch import runs_grouped
from isoflop.model.transformer import Transformer
from isoflop.numerics.linear import MatmulBackend
from isoflop.training.optim import prepare_state
from isoflop.training.step import forward_backward, take_step
from isoflop.training.workload import Workload

MAX_PARAMETERS = 100_000_000
"""Used by one token; above, launches no longer matter and the graph's private memory does (assumption)."""


def can_capture(model: nn.Module, optimizer: torch.optim.Optimizer, micro_batches: list[tuple[Tensor, ...]]) -> bool:
    """Whether a step is worth and fit for capture: CUDA, one micro-batch, a small model, fused AdamW.

    Experts must run as grouped products: looped ones ask the device how many rows each has. Noise must come from
    a key on the device: the host's own says nothing to a replay.
    """
    formats = [
        (product, layer)
        for layer in model.modules()
        for product in layer.children()
        if isinstance(product, MatmulBackend)
    ]
    if not all(product.capturable(w) for product, layer in formats for w in layer.parameters(recurse=False)):
        return False
    parameter = next(model.parameters())
    n_used = sum(p.numel() for p in model.parameters())
    if isinstance(model, Transformer) and (experts := model.config.experts) is not None:
        if formats or not runs_grouped(parameter.device, model.dtype, model.config.d_model, experts.d_expert):
            return False
        n_used = count_parameters(model.config).n_params_active
    small = n_used <= MAX_PARAMETERS
    return parameter.is_cuda and len(micro_batches) == 1 and small and bool(optimizer.defaults["fused"])


class GraphedStep:
    """Forward, backward, clipping and AdamW of one micro-batch, replayed on new data and a new learning rate."""

    def __init__(
        self,
        workload: Workload,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        micro_batch: tuple[Tensor, ...],
        clip_norm: float,
    ):
        device = next(model.parameters()).device
        self._inputs = tuple(tensor.to(device) for tensor in micro_batch)
        self._rate = torch.zeros((), device=device)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._gradients = [torch.zeros_like(p) for p in self._parameters]
        self._optimizer = optimizer
        for group in optimizer.param_groups:
            group["capturable"], group["lr"] = True, self._rate
        self._prepare_state()
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(2):  # kernels are chosen, libraries initialised and blocks compiled outside the capture
                torch._foreach_zero_(self._gradients)
                forward_backward(workload, model, [self._inputs])
        torch.cuda.current_stream(device).wait_stream(stream)
        for hook in workload.hooks:
            hook.reset()  # the passes above were no steps
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            torch._foreach_zero_(self._gradients)
            self._figures = take_step(workload, model, optimizer, [self._inputs], clip_norm=clip_norm)

    def __call__(self, micro_batch: tuple[Tensor, ...], learning_rate: float) -> Tensor:
        """Take one step; returns [loss per token, gradient norm, figures of the hooks] on the device."""
        for held, new in zip(self._inputs, micro_batch, strict=True):
            held.copy_(new, non_blocking=True)
        self._rate.fill_(learning_rate)
        self._graph.replay()
        return self._figures.clone()

    def _prepare_state(self) -> None:
        """Gradients and moments must exist before capture; creating them must not count as a step."""
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
            prepare_state(self._optimizer, parameter)
