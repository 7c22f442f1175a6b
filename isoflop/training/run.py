"""One run, whatever it trains: what its folder holds, where it goes on from, training, `result.json`.

A `Job` is what one kind of training brings: pre-training and extension, imaging, training in situ, and what is to come
differ in their job and in nothing of this file. A killed run starts again with the same call and ends with the same
numbers; a finished one is read, not repeated.
"""

import dataclasses
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from isoflop.errors import CheckpointError
from isoflop.model.attention import fastest_kernels
from isoflop.recipe import read_json, write_json, write_recipe
from isoflop.run import commit, now, processor
from isoflop.training import checkpoint
from isoflop.training.forecast import LossForecast
from isoflop.training.loop import LoopResult, Saving, StepPlan, train, validated
from isoflop.training.monitor import Progress, Watch, peak_flops_per_s
from isoflop.training.step import ONE_PROCESS, Layout
from isoflop.training.workload import Workload

log = logging.getLogger(__name__)


class Built(NamedTuple):
    """What is trained, on its device."""

    workload: Workload
    model: nn.Module
    optimizer: torch.optim.Optimizer
    flops_per_token: float = 0.0
    """For the share of the device's peak; 0: not measured."""
    dtype: torch.dtype = torch.float32
    """Of the products that the peak is for."""
    layout: Layout = ONE_PROCESS
    forecast: LossForecast | None = None
    """Of a run with a curve of its own."""


class Job(Protocol):
    """One kind of training; inherit from it for the defaults. `run` calls the methods in this order, each at most once.

    The arithmetic is the workload's; a job says what the run is, and how model and workload come about.
    """

    identity: dict[str, Any]
    """What makes this run this one: kept in every checkpoint."""
    plan: StepPlan
    saving: Saving
    recipe: Any = None
    """Dataclass written to recipe.toml, where there is one."""

    def is_result(self, result: dict[str, Any]) -> bool:
        """Whether a result that lies in the folder is that of this run."""
        return all(result.get(key) == value for key, value in self.identity.items())

    def build(self) -> Built:
        """Model, workload and optimizer; the weights are drawn later, if at all."""
        ...

    def initialise(self, model: nn.Module) -> None:
        """Weights of step 0, where no checkpoint has them and `build` has not set them."""

    def keep(self, run_dir: Path) -> None:
        """Puts into the folder what later commands must not look for elsewhere."""

    def check_continues(self, state: dict[str, Any], found: Path) -> None:
        """Raises CheckpointError where this run cannot go on from the checkpoint `found` with its `state`."""
        if any(state.get(key) != value for key, value in self.identity.items()):
            raise CheckpointError(f"{found} was trained with another recipe; choose another folder or delete it")

    def result(self, figures: dict[str, Any], validation: dict[str, object], built: Built) -> dict[str, Any]:
        """What the run returns, and result.json once it has ended; `validation` is empty before the end."""
        return {**self.identity, **figures, **validation}


def run(
    job: Job,
    run_dir: Path,
    *,
    start_from: Path | None = None,
    stop_at: int | None = None,
    keep_steps: frozenset[int] = frozenset(),
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train and return what `run_dir`/result.json holds; goes on from the newest checkpoint that lies there.

    `start_from` is a checkpoint folder of a trunk that a new run continues; `stop_at` ends after that many optimizer
    steps (a trunk); checkpoints at `keep_steps` are kept.

    Raises:
        CheckpointError: the folder holds another run, all checkpoints are damaged, or the disk is full.
    """
    if (finished := finished_result(job, run_dir, stop_at)) is not None:
        return finished
    opened = open_run(job, run_dir, start_from, stop_at, keep_steps, Watch(on_progress, should_stop))
    return conclude(opened, trained(opened))


def finished_result(job: Job, run_dir: Path, stop_at: int | None) -> dict[str, Any] | None:
    """The result that lies in the folder, where the run has ended."""
    result_path = run_dir / "result.json"
    if not result_path.is_file() or stop_at is not None:
        return None
    finished = read_json(result_path, CheckpointError, "delete it, and the run goes on from its last checkpoint")
    if not job.is_result(finished):
        return None
    log.info("%s is finished already; delete the folder to run it again", run_dir)
    return finished


@dataclasses.dataclass(frozen=True)
class Opened:
    """A run that can begin, from its first step or from a checkpoint."""

    job: Job
    run_dir: Path
    built: Built
    plan: StepPlan
    saving: Saving
    state: dict[str, Any]
    """What every checkpoint carries."""
    start_step: int
    watch: Watch
    peak: tuple[float, str] | tuple[None, None]

    @property
    def device(self) -> torch.device:
        return next(iter(self.built.model.state_dict().values())).device


def open_run(
    job: Job,
    run_dir: Path,
    start_from: Path | None,
    stop_at: int | None,
    keep_steps: frozenset[int],
    watch: Watch,
) -> Opened:
    """Build it and give it its weights: of the newest checkpoint in its folder, of `start_from`, or those of step 0."""
    started_at, earlier_s, start_step, first_step = now(), 0.0, 0, 0
    built = job.build()
    model, optimizer = built.model, built.optimizer
    own = checkpoint.newest(run_dir / "checkpoints")
    found = own or start_from
    if found is None:
        job.initialise(model)
    else:
        if own is None and (problem := checkpoint.damage(found)):
            raise CheckpointError(f"the run cannot start from {found}: {problem}; train that trunk again")
        state = checkpoint.load(found, model, optimizer)
        job.check_continues(state, found)
        _check_format(state, found, built.dtype)
        start_step = first_step = state["step"]
        if own:
            first_step, earlier_s = state.get("first_step", 0), state.get("wall_s", 0.0)
            started_at = state.get("started_at", started_at)
    if job.recipe is not None:
        write_recipe(run_dir / "recipe.toml", job.recipe, header="resolved recipe of this run")
    job.keep(run_dir)
    device = next(iter(model.state_dict().values())).device
    peak = peak_flops_per_s(device, built.dtype) if built.flops_per_token else (None, None)
    state = {
        **job.identity,
        "precision": str(built.dtype).removeprefix("torch."),
        "first_step": first_step,
        "started_at": started_at,
        "wall_s": earlier_s,
    }
    forecast = built.forecast if start_from is None and stop_at is None else None  # a trunk's is but a part of a curve
    watch = dataclasses.replace(
        watch, flops_per_token=built.flops_per_token, peak_flops_per_s=peak[0], forecast=forecast
    )
    saving = dataclasses.replace(job.saving, at_steps=keep_steps)
    plan = dataclasses.replace(job.plan, stop_at=stop_at)
    return Opened(job, run_dir, built, plan, saving, state, start_step, watch, peak)


def trained(opened: Opened) -> LoopResult:
    """Take its steps, if it has any."""
    built = opened.built
    if not opened.plan.n_steps:  # solved, not trained by steps: its checkpoint is what others read
        folder, state = opened.run_dir / "checkpoints", opened.state
        checkpoint.save(folder, step=0, model=built.model, optimizer=built.optimizer, state=state)
        return LoopResult("finished", 0, math.nan, 0.0, 0, 0.0)
    with fastest_kernels(opened.device):
        return train(
            built.workload,
            built.model,
            built.optimizer,
            opened.plan,
            run_dir=opened.run_dir,
            saving=opened.saving,
            state=opened.state,
            start_step=opened.start_step,
            watch=opened.watch,
            layout=built.layout,
        )


def conclude(opened: Opened, loop: LoopResult) -> dict[str, Any]:
    """Validate it and write result.json, if it has ended."""
    built, workload, device, state = opened.built, opened.built.workload, opened.device, opened.state
    figures = {
        "status": loop.status,
        "step": loop.step,
        "n_steps": opened.plan.n_steps,
        "n_tokens": loop.step * workload.tokens_per_step,
        "start_step": state["first_step"],
        "train_loss_nats": loop.train_loss_nats,
        "wall_s": state["wall_s"] + loop.wall_s,
        "tokens_per_s": loop.tokens / loop.wall_s if loop.wall_s else None,
        "data_wait_share": loop.data_wait_s / loop.wall_s if loop.wall_s else None,
        "peak_flops_per_s": opened.peak[0],
        "peak_source": opened.peak[1],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
        "started_at": state["started_at"],
        "finished_at": now(),
        **({"stacked": loop.stacked} if loop.stacked > 1 else {}),
    }
    validation = validated(workload, built.model, loop.step) if loop.status == "finished" else {}
    if not math.isfinite(float(validation.get("loss_nats", 0.0))):  # type: ignore[arg-type]
        figures["status"] = "diverged"
    result = opened.job.result(figures, validation, built)
    if figures["status"] in ("finished", "diverged"):
        write_json(opened.run_dir / "result.json", result)
    return result


def _check_format(state: dict[str, Any], found: Path, dtype: torch.dtype) -> None:
    """Raises CheckpointError where the device at hand would go on in another number format: two runs in one folder."""
    here = str(dtype).removeprefix("torch.")
    if (began := state.get("precision", here)) != here:
        raise CheckpointError(
            f"{found} was trained in {began}, here it would go on in {here}, since train.precision = auto follows the "
            f"device: go on with a device as before, or choose another folder and set train.precision"
        )
