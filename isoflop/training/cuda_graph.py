"""Optimizer steps as CUDA graphs: kernels are captured once and replayed without being launched one by one.

A model of a few million parameters keeps a GPU busy for a millisecond a step, but launching its kernels takes ten: its
step is one graph. A step of several micro-batches is three graphs: gradients zeroed and weights cast, one micro-batch
(replayed for each), clipping with the optimizer. What they save is the gaps between kernels (docs/speed.md).
"""

import contextlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from isoflop.model.accounting import count_parameters, training_memory
from isoflop.model.dispatch import runs_grouped
from isoflop.model.transformer import Transformer
from isoflop.numerics.linear import MatmulBackend
from isoflop.training.optim import prepare_state
from isoflop.training.step import add_gradients, forward_backward, held_weights, move_weights, take_step
from isoflop.training.workload import Workload

MAX_PARAMETERS = 100_000_000
"""Used by one token, of a step with one micro-batch; above, its launches no longer matter (assumption)."""

FREE_SHARE = 0.9
"""Of the free memory that several micro-batches and a validation may need: activations and logits of the former stay
the graph's own (assumption)."""
_ONE_AT_A_TIME = threading.Lock()
"""Captures of this process."""


def can_capture(
    workload: Workload, model: nn.Module, optimizer: torch.optim.Optimizer, micro_batches: list[tuple[Tensor, ...]]
) -> bool:
    """Whether a step is worth and fit for capture: CUDA, fused AdamW or Muon, and nothing that asks the host.

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
        if not runs_grouped(parameter.device, model.dtype, model.config.d_model, experts.d_expert):
            return False
        n_used = count_parameters(model.config).n_params_active
    if not parameter.is_cuda or not optimizer.defaults["fused"]:
        return False
    if len(micro_batches) == 1:
        return n_used <= MAX_PARAMETERS
    return _repeats(workload, micro_batches) and _fits(model, micro_batches[0], parameter.device)


@contextlib.contextmanager
def warming_up(device: torch.device) -> Iterator[None]:
    """Kernels are chosen, libraries initialised and blocks compiled inside, before a capture.

    A thread with a stream of its own stays there: new streams come round after 32 of them, and work on one on which
    another thread captures would become part of its graph.
    """
    current = torch.cuda.current_stream(device)
    stream = _own_stream(device) or torch.cuda.Stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)


@contextlib.contextmanager
def captured(graph: torch.cuda.CUDAGraph, pool=None) -> Iterator[None]:
    """Capture what runs inside; other threads may pin the next batch, or replay graphs of theirs, meanwhile.

    On the stream of this thread where it has one: workspaces of libraries belong to a stream, and graphs that are
    replayed side by side must not share them.
    """
    with (
        _ONE_AT_A_TIME,
        torch.cuda.graph(graph, pool=pool, stream=_own_stream(), capture_error_mode="thread_local"),
    ):
        yield


def _own_stream(device: torch.device | None = None) -> torch.cuda.Stream | None:
    """That of this thread, where it has one beside the default."""
    stream = torch.cuda.current_stream(device)
    return None if stream == torch.cuda.default_stream(device) else stream


def _repeats(workload: Workload, micro_batches: list[tuple[Tensor, ...]]) -> bool:
    """Whether all micro-batches are the same to a graph: of one shape, and divided by a number known before."""
    shapes = {tuple(tensor.shape for tensor in micro_batch) for micro_batch in micro_batches}
    return len(shapes) == 1 and isinstance(workload.divisor(micro_batches), int)


def _fits(model: nn.Module, micro_batch: tuple[Tensor, ...], device: torch.device) -> bool:
    """Whether what a step needs beside its weights leaves room for what runs outside the graphs."""
    if not isinstance(model, Transformer):
        return False
    precision = "bf16" if model.dtype == torch.bfloat16 else "fp32"
    memory = training_memory(model.config, precision=precision, micro_batch=len(micro_batch[0]))
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    validation = memory.logits_bytes  # little else is there at one time
    return memory.total_bytes - memory.weights_bytes + validation <= FREE_SHARE * free


class GraphedStep:
    """Forward, backward, clipping and optimizer, replayed on new data and a new learning rate."""

    def __init__(
        self,
        workload: Workload,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        micro_batches: list[tuple[Tensor, ...]],
        clip_norm: float,
    ):
        device = next(model.parameters()).device
        self._inputs = tuple(tensor.to(device) for tensor in micro_batches[0])
        self._rate = torch.zeros((), device=device)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._gradients = [torch.zeros_like(p) for p in self._parameters]
        self._workload, self._optimizer = workload, optimizer
        for group in optimizer.param_groups:
            group["capturable"], group["lr"] = True, self._rate
        self._prepare_state()
        with warming_up(device):
            for _ in range(2):
                torch._foreach_zero_(self._gradients)
                forward_backward(workload, model, [self._inputs])
        for hook in workload.hooks:
            hook.reset()  # the passes above were no steps
        if len(micro_batches) == 1:
            graph = torch.cuda.CUDAGraph()
            with captured(graph):
                torch._foreach_zero_(self._gradients)
                self._figures = take_step(workload, model, optimizer, [self._inputs], clip_norm=clip_norm)
            self._graphs = (graph,)
        else:
            torch.cuda.empty_cache()  # the activations of the passes above: the graphs have memory of their own
            self._graphs = self._captured_parts(model, workload.divisor(micro_batches), clip_norm)

    def _captured_parts(self, model: nn.Module, divisor: int | Tensor, clip_norm: float) -> tuple:
        """Before, during and after the micro-batches, in one memory pool: they always run in this order."""
        pool, graphs = torch.cuda.graph_pool_handle(), tuple(torch.cuda.CUDAGraph() for _ in range(3))
        total = self._total = torch.zeros((), device=self._rate.device)  # kept: the graphs write to its memory
        with ExitStack() as held:
            with captured(graphs[0], pool):
                torch._foreach_zero_(self._gradients)
                total.zero_()
                held.enter_context(held_weights(model))
            with captured(graphs[1], pool):
                add_gradients(self._workload, model, self._inputs, divisor, total)
        with captured(graphs[2], pool):
            self._figures = move_weights(self._workload, model, self._optimizer, total, clip_norm)
        return graphs

    def __call__(self, micro_batches: list[tuple[Tensor, ...]], learning_rate: float) -> Tensor:
        """Take one step; returns [loss per token, gradient norm, figures of the hooks] on the device."""
        self._rate.fill_(learning_rate)
        if len(self._graphs) == 1:
            self._replay(self._graphs[0], micro_batches[0])
            return self._figures.clone()
        begin, add, finish = self._graphs
        begin.replay()
        for index, micro_batch in enumerate(micro_batches):
            for hook in self._workload.hooks:
                hook.micro_batch(index)
            self._replay(add, micro_batch)
        finish.replay()
        return self._figures.clone()

    def _replay(self, graph: torch.cuda.CUDAGraph, micro_batch: tuple[Tensor, ...]) -> None:
        for held, new in zip(self._inputs, micro_batch, strict=True):
            held.copy_(new, non_blocking=True)
        graph.replay()

    def _prepare_state(self) -> None:
        """Gradients and moments must exist before capture; creating them must not count as a step."""
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
            prepare_state(self._optimizer, parameter)
