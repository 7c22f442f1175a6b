"""The training loop: accumulate, clip, step, log, save, resume. Every workload runs through it.

A batch is a pure function of the step, the learning rate is one too, and a checkpoint holds everything else. So a run
that was killed at any moment and restarted produces the same numbers as one that was not.
"""

import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from isoflop.numerics.noise import VALIDATION, Clock
from isoflop.numerics.step_weights import step_weights
from isoflop.training import checkpoint
from isoflop.training.graph import GraphedStep, activation_dtype, can_capture
from isoflop.training.monitor import MetricsFile, Progress
from isoflop.training.workload import Terms, Workload, parts

log = logging.getLogger(__name__)

Status = Literal["finished", "diverged", "interrupted", "stopped"]


@dataclass(frozen=True)
class Saving:
    """When checkpoints are written and which stay."""

    every_steps: int = 0
    """0: by time only."""
    every_s: float = 300.0
    """0: never by time."""
    keep: int = 2
    at_end: bool = True
    at_steps: frozenset[int] = frozenset()
    """Steps (counted after the optimizer step) at which one is written and kept for good: branch points."""


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


def train(
    workload: Workload,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    rate: Callable[[int], float],
    n_steps: int,
    run_dir: Path,
    saving: Saving,
    state: dict[str, Any],
    start_step: int = 0,
    stop_at: int | None = None,
    clip_norm: float = 1.0,
    validate_every: int = 0,
    flops_per_token: float = 0.0,
    peak_flops_per_s: float | None = None,
    graph: bool = True,
    terms: Terms | None = None,
    clock: Clock | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> LoopResult:
    """Train from `start_step` to `n_steps` (or `stop_at`), leaving metrics and checkpoints in `run_dir`.

    `rate(step)` is the learning rate of a step, `state` is what every checkpoint carries besides the tensors.
    `graph` replays the steps of small models as one CUDA graph; `terms` surround every step; `clock` is told where the
    run is, for number formats with noise. Losses travel from the device in batches of steps, so the steady state never
    waits for the device.

    Raises:
        CheckpointError: a checkpoint could not be written (disk full).
    """
    device = next(model.parameters()).device
    end = n_steps if stop_at is None else min(stop_at, n_steps)
    metrics = MetricsFile(run_dir / "metrics.jsonl", resume_step=start_step)
    speed = MetricsFile(run_dir / "speed.jsonl", resume_step=start_step)
    folder = run_dir / "checkpoints"
    reports = _Reports(device, terms)
    n_recent = max(1, min(100, n_steps // 10))
    recent = metrics.last_losses(n_recent)
    diverged_at: int | None = None
    latest_bits: float | None = None
    status: Status = "finished" if end == n_steps else "stopped"
    graphed: GraphedStep | None = None
    data_wait_s = wall_s = 0.0
    last_save = last_report = time.perf_counter()
    last_report_step = start_step

    def drain(*, wait: bool) -> bool:
        """Write losses that have arrived; True when one of them shows divergence."""
        nonlocal last_report, last_report_step, diverged_at
        lines = reports.arrived(wait=wait)
        if not lines:
            return False
        bad = [index for index, line in enumerate(lines) if not math.isfinite(line["loss_nats"])]
        if bad:  # the run ends at its first bad step, however many more were under way when it was seen
            del lines[bad[0] + 1 :]
            diverged_at = lines[-1]["step"]
        metrics.write(lines)
        recent.extend(line["loss_nats"] for line in lines)
        del recent[:-n_recent]
        clock = time.perf_counter()
        done = lines[-1]["step"] - last_report_step
        if done > 0 and clock - last_report > 0.5:
            tokens_per_s = done * workload.tokens_per_step / (clock - last_report)
            share = flops_per_token * tokens_per_s / peak_flops_per_s if peak_flops_per_s else None
            speed.write([{"step": lines[-1]["step"], "tokens_per_s": tokens_per_s, "share_of_peak": share}])
            last_report, last_report_step = clock, lines[-1]["step"]
            if on_progress is not None:
                left = (n_steps - lines[-1]["step"]) * workload.tokens_per_step / tokens_per_s
                on_progress(
                    Progress(
                        step=lines[-1]["step"],
                        n_steps=n_steps,
                        n_tokens=lines[-1]["step"] * workload.tokens_per_step,
                        loss_nats=sum(recent) / len(recent),
                        bits_per_byte=latest_bits,
                        tokens_per_s=tokens_per_s,
                        share_of_peak=share,
                        seconds_left=left,
                    )
                )
        return diverged_at is not None

    def save(step: int) -> None:
        nonlocal last_save
        checkpoint.save(
            folder,
            step=step,
            model=model,
            optimizer=optimizer,
            state={**state, "wall_s": state.get("wall_s", 0.0) + wall_s},
        )
        checkpoint.prune(folder, step=step, keep=saving.keep, pinned=set(saving.at_steps))
        last_save = time.perf_counter()

    step = start_step
    model.train()
    with closing(metrics), closing(speed), ThreadPoolExecutor(1, thread_name_prefix="batches") as reader:
        ahead = reader.submit(_ready, workload, step, device) if step < end else None
        while step < end:
            began = time.perf_counter()
            assert ahead is not None
            micro_batches = ahead.result()
            data_wait_s += time.perf_counter() - began
            if step + 1 < end:
                ahead = reader.submit(_ready, workload, step + 1, device)
            learning_rate = rate(step)
            if terms is not None:
                terms.begin(step)
            if step == start_step and graph and can_capture(model, optimizer, micro_batches):
                graphed = GraphedStep(workload, model, optimizer, micro_batches[0], clip_norm, terms)
            if graphed is not None:
                if clock is not None:
                    clock.set(step, 0)
                values = graphed(micro_batches[0], learning_rate)
            else:
                values = _step(workload, model, optimizer, micro_batches, learning_rate, clip_norm, terms, clock, step)
            step += 1
            reports.add(
                step,
                {"n_tokens": step * workload.tokens_per_step, "learning_rate": learning_rate},
                values,
            )
            wall_s += time.perf_counter() - began
            stopping = should_stop()
            validating = validate_every and step % validate_every == 0 and step < n_steps
            by_time = saving.every_s and time.perf_counter() - last_save > saving.every_s
            by_step = saving.every_steps and step % saving.every_steps == 0
            saves = by_time or by_step or step in saving.at_steps or (step == end and saving.at_end) or stopping
            if drain(wait=bool(saves or validating or step == end)):
                status = "diverged"
                break
            if validating:
                if clock is not None:
                    clock.set(step, VALIDATION)
                figures = workload.validate(model)
                latest_bits = figures.get("bits_per_byte")  # type: ignore[assignment]
                metrics.write([{"step": step, "validation": figures}])
                model.train()
                last_report, last_report_step = time.perf_counter(), step
            if saves:
                save(step)
            if stopping and step < end:
                status = "interrupted"
                break
    return LoopResult(
        status=status,
        step=diverged_at or step,
        train_loss_nats=sum(recent) / len(recent) if recent else math.nan,
        wall_s=wall_s,
        tokens=(step - start_step) * workload.tokens_per_step,
        data_wait_s=data_wait_s,
    )


def _step(
    workload: Workload,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[tuple[Tensor, ...]],
    learning_rate: float,
    clip_norm: float,
    terms: Terms | None = None,
    clock: Clock | None = None,
    step: int = 0,
) -> Tensor:
    """One optimizer step; returns [loss per token, gradient norm, figures of `terms`] on the device."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    device = next(model.parameters()).device
    total = torch.zeros((), device=device)
    with step_weights(model, activation_dtype(model)):
        for index, micro_batch in enumerate(micro_batches):
            if clock is not None:
                clock.set(step, index)
            on_device = tuple(tensor.to(device, non_blocking=True) for tensor in micro_batch)
            objective, reported = parts(workload.loss_sum(model, on_device))
            (objective / workload.tokens_per_step).backward()  # gradients add up in float32, as the parameters are
            total += reported.detach() / workload.tokens_per_step
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    values = torch.stack((total, norm.float()))
    return values if terms is None else torch.cat((values, terms.finish()))


def _ready(workload: Workload, step: int, device: torch.device) -> list[tuple[Tensor, ...]]:
    micro_batches = workload.batch(step)
    if device.type != "cuda":
        return micro_batches
    return [tuple(tensor.pin_memory() for tensor in micro_batch) for micro_batch in micro_batches]


class _Reports:
    """Per-step figures on their way from the device: gathered for some steps, copied once, read when they are there."""

    STEPS = 16

    def __init__(self, device: torch.device, terms: Terms | None):
        self._cuda, self._terms = device.type == "cuda", terms
        self._gathering: list[tuple[int, dict[str, Any], Tensor]] = []
        self._travelling: list[tuple[list[tuple[int, dict[str, Any]]], Tensor, Any]] = []

    def add(self, step: int, figures: dict[str, Any], values: Tensor) -> None:
        self._gathering.append((step, figures, values.detach()))
        if len(self._gathering) >= self.STEPS:
            self._send()

    def _send(self) -> None:
        if not self._gathering:
            return
        values = torch.stack([value for _, _, value in self._gathering])
        event = None
        if self._cuda:
            arrived = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            arrived.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            values = arrived
        self._travelling.append(([(step, figures) for step, figures, _ in self._gathering], values, event))
        self._gathering = []

    def arrived(self, *, wait: bool) -> list[dict[str, Any]]:
        if wait:
            self._send()
        lines = []
        while self._travelling:
            steps, values, event = self._travelling[0]
            if event is not None:
                if wait:
                    event.synchronize()
                elif not event.query():
                    break
            for (step, figures), (loss, norm, *others) in zip(steps, values.tolist(), strict=True):
                line = {"step": step, **figures, "loss_nats": loss, "gradient_norm": norm}
                lines.append(line if self._terms is None else {**line, **self._terms.figures(step, others)})
            self._travelling.pop(0)
        return lines
