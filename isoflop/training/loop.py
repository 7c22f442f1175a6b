"""The training loop: accumulate, clip, step, log, save, resume. Every workload runs through it.

A batch is a pure function of the step, the learning rate is one too, and a checkpoint holds everything else. So a run
that was killed at any moment and restarted produces the same numbers as one that was not. A batch that depends on the
weights (`Workload.prefetch` off) is made when the step before it is done, from the weights that a checkpoint holds.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from isoflop.training import checkpoint
from isoflop.training.checkpoint import Saving
from isoflop.training.cuda_graph import GraphedStep, can_capture
from isoflop.training.monitor import NOBODY, Reporter, Watch
from isoflop.training.step import ONE_PROCESS, Layout, take_step
from isoflop.training.workload import Workload

Status = Literal["finished", "diverged", "interrupted", "stopped"]


@dataclass(frozen=True)
class StepPlan:
    """Which optimizer steps a run takes, and how."""

    n_steps: int
    """Of the whole schedule."""
    rate: Callable[[int], float]
    """Learning rate of a step (from 0)."""
    clip_norm: float = 1.0
    validate_every: int = 0
    """Steps; 0: not during the run."""
    stop_at: int | None = None
    """End after so many steps of the schedule (a trunk)."""
    graph: bool = True
    """Replay steps as CUDA graphs where they can be captured."""
    plain_from: int | None = None
    """Step before which the number formats of the products end (`PlainFrom`): what was captured is captured anew."""

    @property
    def end(self) -> int:
        """Steps after which the run ends."""
        return self.n_steps if self.stop_at is None else min(self.stop_at, self.n_steps)


@dataclass(frozen=True)
class LoopResult:
    """How a call of `train` ended."""

    status: Status
    """stopped: reached `stop_at` before the end of the schedule."""
    step: int
    train_loss_nats: float
    """Mean over the last tenth (at least one, at most 100) of the steps in metrics.jsonl; NaN when there are none."""
    wall_s: float
    """Of the steps of this call, without start and validation."""
    tokens: int
    """Consumed in this call."""
    data_wait_s: float
    """Time in which the loop waited for a batch."""
    stacked: int = 1
    """Runs of the batched program that it was part of; both times are its share."""


def train(
    workload: Workload,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    plan: StepPlan,
    *,
    run_dir: Path,
    saving: Saving,
    state: dict[str, Any],
    start_step: int = 0,
    watch: Watch = NOBODY,
    layout: Layout = ONE_PROCESS,
) -> LoopResult:
    """Train from `start_step` to the end of `plan`, leaving metrics and checkpoints in `run_dir`.

    `state` is what every checkpoint carries besides the tensors.

    Raises:
        CheckpointError: a checkpoint could not be written (disk full).
    """
    device = next(model.parameters()).device
    end, step = plan.end, start_step
    status: Status = "finished" if end == plan.n_steps else "stopped"
    report = Reporter(
        run_dir,
        device=device,
        hooks=workload.hooks,
        start_step=start_step,
        n_steps=plan.n_steps,
        tokens_per_step=workload.tokens_per_step,
        watch=watch,
    )
    folder = run_dir / "checkpoints"
    graphed: GraphedStep | None = None
    data_wait_s = wall_s = 0.0
    last_save = time.perf_counter()
    model.train()
    with closing(report), ThreadPoolExecutor(1, thread_name_prefix="batches") as reader:
        ahead: Future[list[tuple[Tensor, ...]]] | None = None
        while step < end:
            began = time.perf_counter()
            micro_batches = ahead.result() if ahead is not None else _ready(workload, step, layout, device)
            data_wait_s += time.perf_counter() - began
            if workload.prefetch and step + 1 < end:
                ahead = reader.submit(_ready, workload, step + 1, layout, device)
            learning_rate = plan.rate(step)
            for hook in workload.hooks:
                hook.begin(step)
            if graphed is not None and step == plan.plain_from:
                graphed = None
                optimizer.zero_grad(set_to_none=True)  # the graph's own
            first = step in (start_step, plan.plain_from) and plan.graph and layout.world == 1
            if first and can_capture(workload, model, optimizer, micro_batches):
                graphed = GraphedStep(workload, model, optimizer, micro_batches, plan.clip_norm)
            if graphed is not None:
                values = graphed(micro_batches, learning_rate)
            else:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate
                values = take_step(workload, model, optimizer, micro_batches, clip_norm=plan.clip_norm, layout=layout)
                optimizer.zero_grad(set_to_none=True)
            step += 1
            report.add(step, learning_rate, values)
            wall_s += time.perf_counter() - began
            stopping = watch.should_stop()
            validating = plan.validate_every and step % plan.validate_every == 0 and step < plan.n_steps
            saves = saving.at(step, time.perf_counter() - last_save) or (step == end and saving.at_end) or stopping
            if report.drain(wait=bool(saves or validating or step == end)):
                status = "diverged"
                break
            if validating:
                report.validated(step, validated(workload, model, step))
                model.train()
            if saves:
                total_s = state.get("wall_s", 0.0) + wall_s
                checkpoint.save(folder, step=step, model=model, optimizer=optimizer, state={**state, "wall_s": total_s})
                checkpoint.prune(folder, step=step, keep=saving.keep, pinned=set(saving.at_steps))
                last_save = time.perf_counter()
            if stopping and step < end:
                status = "interrupted"
                break
    return LoopResult(
        status=status,
        step=report.diverged_at or step,
        train_loss_nats=report.recent_loss(),
        wall_s=wall_s,
        tokens=(step - start_step) * workload.tokens_per_step,
        data_wait_s=data_wait_s,
    )


def validated(workload: Workload, model: nn.Module, step: int) -> dict[str, object]:
    """What the workload measures after `step` steps, its hooks told before."""
    for hook in workload.hooks:
        hook.validating(step)
    return workload.validate(model)


def _ready(workload: Workload, step: int, layout: Layout, device: torch.device) -> list[tuple[Tensor, ...]]:
    micro_batches = workload.batch(step, layout.rank, layout.world)
    if device.type != "cuda":
        return micro_batches
    return [tuple(tensor.pin_memory() for tensor in micro_batch) for micro_batch in micro_batches]
