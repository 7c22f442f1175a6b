"""Run a ladder: every missing cell once, several at a time, with trunks shared between cells.

    SWEEP/ladder.json       the cells, as planned
          records.jsonl     one line per cell that finished, diverged or failed, appended when it is done
          trunks/TRUNK/     constant-rate runs, with a checkpoint at every branch point
          cells/CELL/       recipe, metrics and result of each cell (its weights only on request)
          sweep.json        what was spent, and what sharing trunks saved

Cells run where the engine has them run (isoflop.launch); what runs next, what is tried again and what is recorded is
decided here. Killing a worker costs the steps since its last checkpoint; killing the sweep costs the same, and starting
it again continues at the missing cells. Training, records and ladders know nothing of processes.
"""

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from isoflop.errors import DataError, IsoflopError, RecipeError, undamaged
from isoflop.launch.engine import Ended, Engine
from isoflop.launch.local import LocalEngine
from isoflop.model.accounting import count_parameters
from isoflop.recipe import Tree, write_json
from isoflop.run import only_one
from isoflop.scaling.sweep.cells import Cell, group_cells
from isoflop.scaling.sweep.job import Job
from isoflop.scaling.sweep.records import RunRecord, append_record, read_records
from isoflop.scaling.sweep.speed import Speed
from isoflop.scaling.sweep.worker import run_jobs
from isoflop.training.checkpoint import damage, saved

log = logging.getLogger(__name__)

TRIES = 4
"""A job that dies this often without getting further is given up: a job that always dies must not run for ever."""
STACK = 8
"""Runs of one shape that a GPU trains as one program, unless told otherwise."""
STACKED_PARAMETERS = 50_000_000
"""Of all runs of a stack together; above, one model fills a GPU (assumption)."""


@dataclass(frozen=True)
class SweepProgress:
    """One glance at a sweep."""

    cells_done: int
    cells_total: int
    flops_done: float
    flops_total: float
    seconds_left: float
    worker_s: float
    """Spent by this call, summed over workers."""
    expected_s: float | None
    """Of worker_s at the end, by the measured speed; None without one."""


def run_sweep(
    cells: list[Cell],
    out: Path,
    *,
    study: str,
    workers: int = 1,
    threads: int = 1,
    stack: int = 0,
    keep_weights: bool = False,
    engine: Engine | None = None,
    speed: Speed | None = None,
    on_progress: Callable[[SweepProgress], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[RunRecord]:
    """Run what is missing of `cells` and return the records of all of them, in the order of the ladder.

    Cells run on `engine`; without one in `workers` processes of this machine, of `threads` threads each. A worker
    trains up to `stack` cells at once that differ in seed and rate only (0: 8 on a GPU, 1 on a CPU). `say` gets a line
    for each cell that is over, `speed` (tokens per second of a worker) foretells the cost.

    Raises:
        RecipeError: another sweep works in `out`, `out` holds another ladder, or the cells name no tokens.
        IsoflopError: at the end, where a cell failed: it is recorded so, and tried again by the next call.
    """
    if not all(cell.recipe["data"].get("tokens") for cell in cells):
        raise RecipeError('data.tokens = "" must name a tokens folder; build one with isoflop tokens RECIPE')
    with only_one(out, wait_s=5.0):
        records_path = out / "records.jsonl"
        known = read_records(records_path) if records_path.exists() else []
        if any("camera_px" in record.extra for record in known):
            raise RecipeError(f"--out {out} holds a study of isoflop imaging sweep; give another folder")
        _check_same_ladder(cells, out)
        done = {record.run_id for record in known if record.status != "failed"}
        with contextlib.nullcontext(engine) if engine else LocalEngine(workers, threads) as working:
            scheduler = _Scheduler(cells, out, study, keep_weights, done, speed, say)
            scheduler.run(working, stack, on_progress, should_stop)
        by_id = {record.run_id: record for record in read_records(records_path)} if records_path.exists() else {}
        groups = group_cells(cells)
        separate = sum(group.steps_separate * group.flops_per_step for group in groups)
        shared = sum(group.steps_shared * group.flops_per_step for group in groups)
        write_json(
            out / "sweep.json",
            {
                "n_cells": len(cells),
                "n_recorded": sum(cell.cell_id in by_id for cell in cells),
                "separate_flops": separate,
                "shared_flops": shared,
                "saving_ratio": separate / shared,
            },
        )
        if scheduler.failed:
            name, reason = next(iter(scheduler.failed.items()))
            raise IsoflopError(
                f"{len(scheduler.failed)} of {len(cells)} cells failed, the others are recorded in {records_path}; "
                f"sweep job {name} failed: {reason}; running the sweep again tries failed cells again"
            )
        return [by_id[cell.cell_id] for cell in cells if cell.cell_id in by_id]


class _Scheduler:
    """Jobs and what they wait for."""

    def __init__(
        self,
        cells: list[Cell],
        out: Path,
        study: str,
        keep_weights: bool,
        done: set[str],
        speed: Speed | None,
        say: Callable[[str], None],
    ):
        self.cells = {cell.cell_id: cell for cell in cells}
        self.out, self.study, self.keep_weights, self.say = out, study, keep_weights, say
        self.records_path = out / "records.jsonl"
        self.failed: dict[str, str] = {}
        """Cells that could not be run, and why."""
        self.running: dict[int, tuple[float, list[Job]]] = {}
        """Tasks of the engine: when they started, and the jobs that they train at once."""
        self.stack, self.worker_s = 1, 0.0
        self.open = {cell.cell_id for cell in cells if cell.cell_id not in done}
        self.trunks = {group.trunk_id: group.cells for group in group_cells(cells) if len(group.cells) > 1}
        self.jobs: dict[str, Job] = {}
        for trunk_id, members in self.trunks.items():
            missing = [cell for cell in members if cell.cell_id in self.open]
            if missing:
                self._add_trunk(trunk_id, members, missing)
        for cell_id in sorted(self.open):
            self._add_cell(self.cells[cell_id])
        self.total = sum(job.flops for job in self.jobs.values())
        self.expected_s = sum(job.expected_s(speed) for job in self.jobs.values()) if speed else None

    def _add_trunk(self, trunk_id: str, members: tuple[Cell, ...], missing: list[Cell]) -> None:
        longest = max(members, key=lambda cell: cell.steps)
        steps = tuple(sorted({cell.branch_step for cell in missing}))
        flops = steps[-1] * longest.flops_per_step
        folder = self.out / "trunks" / trunk_id
        _drop_unusable(folder / "checkpoints", steps)
        self.jobs[f"trunk-{trunk_id}"] = Job(
            f"trunk-{trunk_id}", longest, folder, flops, stop_at=steps[-1], keep_steps=steps
        )

    def _add_cell(self, cell: Cell) -> None:
        start_from, first = None, 0
        if cell.trunk_id in self.trunks:
            first = cell.branch_step
            start_from = self.out / "trunks" / str(cell.trunk_id) / "checkpoints" / f"step_{first:08d}"
        flops = (cell.steps - first) * cell.flops_per_step
        folder = self.out / "cells" / cell.cell_id
        self.jobs[cell.cell_id] = Job(cell.cell_id, cell, folder, flops, start_from=start_from)

    def run(self, engine: Engine, stack: int, on_progress, should_stop) -> None:
        if not self.jobs:
            return
        engine.require_shared(self.out, sorted({Path(cell.recipe["data"]["tokens"]) for cell in self.cells.values()}))
        self.stack = stack or _stack_of(next(iter(self.cells.values())), engine)
        began = last_shown = waiting_since = time.monotonic()
        try:
            while any(job.state != "finished" for job in self.jobs.values()):
                while not should_stop() and len(self.running) < engine.slots() and (jobs := self._next()):
                    task = engine.start(run_jobs, [job.message(self.keep_weights) for job in jobs])
                    self.running[task] = time.monotonic(), jobs
                    for job in jobs:
                        job.state = "running"
                if should_stop():
                    return
                if self.running:
                    waiting_since = time.monotonic()
                    for ended in engine.poll(1.0):
                        self._take(self.running.pop(ended.task)[1], ended)
                elif time.monotonic() - waiting_since < engine.lag_s:  # for a checkpoint that was written elsewhere
                    time.sleep(1.0)
                else:
                    raise DataError(
                        f"{self.out}: no cell can start, a trunk has lost a checkpoint; run the sweep again"
                    )
                if on_progress is not None and time.monotonic() - last_shown > 1.0:
                    last_shown = time.monotonic()
                    on_progress(self._progress(last_shown - began))
            if on_progress is not None:
                on_progress(self._progress(time.monotonic() - began))
        finally:
            engine.stop()

    def _next(self) -> list[Job]:
        """The most expensive job that can start, with others of its kind; none where none can.

        Branches first, so that a sweep that is cut off has whole sizes. What has killed a worker is tried alone.
        """
        ready = [job for job in self.jobs.values() if job.state == "waiting" and job.can_start()]
        if not ready:
            return []
        job = max(ready, key=lambda job: (job.start_from is not None, job.flops))
        if job.tries or not _stackable(job.cell):
            return [job]
        most = min(self.stack, STACKED_PARAMETERS // count_parameters(job.cell.config).n_params_total)
        alike = [other for other in ready if other.kind == job.kind and not other.tries and other is not job]
        return [job, *alike[: max(0, most - 1)]]

    def _take(self, jobs: list[Job], ended: Ended) -> None:
        self.worker_s += ended.seconds
        if not ended.error:
            for job, result in zip(jobs, ended.value, strict=True):
                self._finish(job, result, ended.node)
            return
        for job in jobs:
            newest = max(saved(job.run_dir / "checkpoints"), default=-1)
            job.tries, job.died_at = (job.tries if newest <= job.died_at else 0) + 1, newest
            if job.tries >= TRIES if ended.died else len(jobs) == 1:
                self._fail(job, f"{TRIES} tries ended so: {ended.error}" if ended.died else ended.error, ended.node)
            else:
                job.state = "waiting"
                log.warning("the worker of %s ended (%s); running it again", job.name, ended.error)

    def _fail(self, job: Job, reason: str, node: str) -> None:
        """It has no result; of a trunk, nor have the cells that wait for it."""
        job.state = "finished"
        for lost in [job] if job.stop_at is None else self._cut_off(job):
            self.failed[lost.name] = reason
            cell = self.cells[lost.name]
            append_record(self.records_path, cell.failed(reason, self.study))
            self._say(cell, "failed", reason, node)

    def _finish(self, job: Job, result: Tree, node: str) -> None:
        if result["status"] == "interrupted":
            job.state = "waiting"
            return
        job.state = "finished"
        if job.stop_at is None:
            self._record(self.cells[job.name], result, node)
        elif result["status"] == "diverged":
            for lost in self._cut_off(job, result["step"]):
                self._record(self.cells[lost.name], result, node)
        self._tidy(job)

    def _cut_off(self, trunk: Job, at_step: int = 0) -> list[Job]:
        """Cells that lack the checkpoint of a trunk that ended for good: they end with it.

        A checkpoint of an earlier step has been written, though another machine's may not be seen yet.
        """
        of_trunk = (j for j in self.jobs.values() if j.start_from and j.start_from.parent.parent == trunk.run_dir)
        lost = [
            job for job in of_trunk if job.state != "finished" and job.first_step() >= at_step and not job.can_start()
        ]
        for job in lost:
            job.state = "finished"
        return lost

    def _record(self, cell: Cell, result: Tree, node: str) -> None:
        record = cell.record(result, self.study)
        append_record(self.records_path, record)
        loss = "" if record.loss_nats is None else f"loss {record.loss_nats:.4f} nats, "
        self._say(cell, record.status, f"{loss}{record.wall_s or 0.0:.0f} s", node)

    def _say(self, cell: Cell, status: str, text: str, node: str) -> None:
        over = len(self.cells) - sum(self.jobs[cell_id].state != "finished" for cell_id in self.open)
        where = f" on {node}" if node else ""
        self.say(f"cell {cell.cell_id} {status}{where}: {text} ({over} of {len(self.cells)} cells)")

    def _tidy(self, job: Job) -> None:
        """Weights of finished cells and of trunks without open branches make room."""
        if self.keep_weights:
            return
        if job.stop_at is None:
            shutil.rmtree(job.run_dir / "checkpoints", ignore_errors=True)
        for trunk_id, members in self.trunks.items():
            users = [self.jobs.get(name) for name in (f"trunk-{trunk_id}", *(cell.cell_id for cell in members))]
            if all(user is None or (user.state == "finished" and user.name not in self.failed) for user in users):
                shutil.rmtree(self.out / "trunks" / trunk_id / "checkpoints", ignore_errors=True)

    def _progress(self, seconds: float) -> SweepProgress:
        so_far = sum(job.flops * job.fraction_done() for job in self.jobs.values())
        left = (self.total - so_far) * seconds / so_far if so_far else float("inf")
        cells_open = sum(self.jobs[cell_id].state != "finished" for cell_id in self.open)
        under_way = sum(time.monotonic() - began for began, _ in self.running.values())
        done = len(self.cells) - cells_open
        worker_s = self.worker_s + under_way
        return SweepProgress(done, len(self.cells), so_far, self.total, left, worker_s, self.expected_s)


def _stackable(cell: Cell) -> bool:
    """What `isoflop.training.stack` can train as one program, as far as a recipe says it."""
    config, sections = cell.config, cell.sections
    plain = config.experts is None and not config.mtp_depth and "numerics" not in sections
    return plain and sections["train"].get("optimizer") != "muon" and not sections["validate"].get("every_steps")


def _stack_of(cell: Cell, engine: Engine) -> int:
    """Runs of one shape to train at once on the device of these cells."""
    device = cell.sections["train"].get("device", "auto")
    if device == "cpu" or engine.gpus == 0.0:  # torch need not be imported to know it
        return 1
    if engine.gpus is not None:
        return STACK
    from isoflop.training.device import choose_device

    return STACK if choose_device(device).type == "cuda" else 1


def _drop_unusable(folder: Path, steps: tuple[int, ...]) -> None:
    """Remove damaged branch points, and what the trunk could resume from beyond the first one it has to make again."""
    missing = []
    for step in steps:
        checkpoint = folder / f"step_{step:08d}"
        problem = damage(checkpoint) if checkpoint.exists() else ""
        if problem:
            log.warning("damaged checkpoint: %s; the trunk makes it again", problem)
            shutil.rmtree(checkpoint)
        if problem is not None:
            missing.append(step)
    for step, checkpoint in saved(folder).items():
        if missing and step > missing[0]:
            shutil.rmtree(checkpoint)


def _check_same_ladder(cells: list[Cell], out: Path) -> None:
    path = out / "ladder.json"
    planned = [{"cell_id": c.cell_id, "budget_flops": c.budget_flops, "trunk_id": c.trunk_id} for c in cells]
    if path.exists():
        with undamaged(str(path), RecipeError, f"delete it to go on in {out}, or choose another folder with --out"):
            before = {cell["cell_id"] for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]}
        if before.isdisjoint(c["cell_id"] for c in planned):
            raise RecipeError(f"{out} holds another ladder (no cell in common); choose another folder with --out")
    write_json(path, {"cells": [{**p, "recipe": c.recipe} for p, c in zip(planned, cells, strict=True)]})
