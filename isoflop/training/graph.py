"""A whole optimizer step of a small model as one CUDA graph.

A model of a few million parameters keeps an H100 busy for a millisecond a step, but launching its kernels one by one
takes ten. Captured once and replayed, the same kernels run without the launches (docs/log.md has the numbers).
"""

from typing import Any

import torch
from torch import Tensor, nn

from isoflop.training.workload import Workload

MAX_PARAMETERS = 100_000_000
"""Above, launches no longer matter and the graph's private memory does (assumption)."""


def can_capture(model: nn.Module, optimizer: torch.optim.AdamW, micro_batches: list[tuple[Tensor, ...]]) -> bool:
    """Whether a step is worth and fit for capture: CUDA, one micro-batch, a small model, fused AdamW."""
    parameter = next(model.parameters())
    small = sum(p.numel() for p in model.parameters()) <= MAX_PARAMETERS
    return parameter.is_cuda and len(micro_batches) == 1 and small and bool(optimizer.defaults["fused"])


class GraphedStep:
    """Forward, backward, clipping and AdamW of one micro-batch, replayed on new data and a new learning rate."""

    def __init__(
        self,
        workload: Workload,
        model: nn.Module,
        optimizer: torch.optim.AdamW,
        micro_batch: tuple[Tensor, ...],
        clip_norm: float,
    ):
        device = next(model.parameters()).device
        self._inputs = tuple(tensor.to(device) for tensor in micro_batch)
        self._rate = torch.zeros((), device=device)
        self._workload, self._model, self._clip_norm = workload, model, clip_norm
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
                self._forward_backward()
        torch.cuda.current_stream(device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._figures = self._step()

    def __call__(self, micro_batch: tuple[Tensor, ...], learning_rate: float) -> Tensor:
        """Take one step; returns [loss per token, gradient norm] on the device."""
        for held, new in zip(self._inputs, micro_batch, strict=True):
            held.copy_(new, non_blocking=True)
        self._rate.fill_(learning_rate)
        self._graph.replay()
        return self._figures.clone()

    def _forward_backward(self) -> Tensor:
        torch._foreach_zero_(self._gradients)
        loss = self._workload.loss_sum(self._model, self._inputs) / self._workload.tokens_per_step
        loss.backward()
        return loss.detach()

    def _step(self) -> Tensor:
        loss = self._forward_backward()
        norm = nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        self._optimizer.step()
        return torch.stack((loss, norm.float()))

    def _prepare_state(self) -> None:
        """Gradients and moments must exist before capture; creating them must not count as a step."""
        state: dict[Any, Any] = self._optimizer.state
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
            if not state[parameter]:
                state[parameter]["step"] = torch.zeros((), device=parameter.device)
                state[parameter]["exp_avg"] = torch.zeros_like(parameter)
                state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
