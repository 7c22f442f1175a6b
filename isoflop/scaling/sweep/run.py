"""Run a ladder: every missing cell once, on several worker processes, with trunks shared between cells.

    SWEEP/ladder.json       the cells, as planned
          records.jsonl     one line per finished or diverged cell, appended when it is done
          trunks/TRUNK/     constant-rate runs, with a checkpoint at every branch point
          cells/CELL/       recipe, metrics and result of each cell (its weights only on request)
          sweep.json        what was spent, and what sharing trunks saved

Killing a worker costs the steps since its last checkpoint; killing the sweep costs the same, and starting it again
continues at the missing cells. Training, records and ladders know nothing of processes: this file is all there is.
"""

import functools
import json
import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from isoflop.errors import DataError, IsoflopError, RecipeError
from isoflop.model.accounting import count_parameters
from isoflop.recipe import write_json
from isoflop.run import only_one
from isoflop.scaling.sweep.cells import Cell, group_cells, stable_hash
from isoflop.scaling.sweep.records import RunRecord, append_record, read_records
from isoflop.scaling.sweep.worker import work
from isoflop.training.checkpoint import damage, saved

log = logging.getLogger(__name__)

TRIES = 4
"""A job whose worker dies this often is given up: a job that always dies must not run for ever."""
STACK = 8
"""Runs of one shape that a GPU trains as one program, unless told otherwise."""
STACKED_PARAMETERS = 50_000_000
"""Of all runs of a stack together; above, one model fills a GPU (assumption)."""
STOP_S = 30.0
"""How long a worker may take to save when it is asked to stop."""


@dataclass(frozen=True)
class SweepProgress:
    """One glance at a sweep."""

    cells_done: int
    cells_total: int
    flops_done: float
    flops_total: float
    seconds_left: float
    message: str


@dataclass
class _Job:
    name: str
    cell: Cell
    """What is run; of a trunk the longest of its cells."""
    run_dir: Path
    flops: float
    stop_at: int | None = None
    """The last step of a trunk; a cell goes on to its end."""
    start_from: Path | None = None
    keep_steps: tuple[int, ...] = ()
    state: str = "waiting"
    """waiting, running or finished"""
    tries: int = 0
    fraction_done: float = 0.0

    def message(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "recipe": self.cell.recipe,
            "run_dir": str(self.run_dir),
            "start_from": str(self.start_from) if self.start_from else None,
            "stop_at": self.stop_at,
            "keep_steps": list(self.keep_steps),
        }

    @functools.cached_property
    def kind(self) -> str:
        """The same for jobs that differ in seed and rate only: those can be trained as one program."""
        recipe = self.cell.recipe
        train = {key: value for key, value in recipe["train"].items() if key not in ("seed", "learning_rate")}
        return stable_hash([{**recipe, "train": train}, self.first_step(), self.last_step(), list(self.keep_steps)])

    def first_step(self) -> int:
        return int(self.start_from.name.removeprefix("step_")) if self.start_from else 0

    def last_step(self) -> int:
        return self.stop_at if self.stop_at is not None else self.cell.steps


@dataclass
class _Worker:
    process: Any
    pipe: Any
    jobs: list[_Job] = field(default_factory=list)
    """What it trains, all at once."""


def run_sweep(
    cells: list[Cell],
    out: Path,
    *,
    study: str,
    workers: int = 1,
    threads: int = 1,
    stack: int = 0,
    keep_weights: bool = False,
    on_progress: Callable[[SweepProgress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[RunRecord]:
    """Run what is missing of `cells` and return the records of all of them, in the order of the ladder.

    A worker trains up to `stack` cells at once that differ in seed and rate only (0: 8 on a GPU, 1 on a CPU).

    Raises:
        RecipeError: another sweep works in `out`, `out` holds another ladder, or the cells name no tokens.
        IsoflopError: a cell failed for a reason that running again does not cure.
    """
    if not all(cell.recipe["data"].get("tokens") for cell in cells):
        raise RecipeError('data.tokens = "" must name a tokens folder; build one with isoflop tokens RECIPE')
    with only_one(out, wait_s=5.0):
        _check_same_ladder(cells, out)
        records_path = out / "records.jsonl"
        done = {record.run_id for record in read_records(records_path)} if records_path.exists() else set()
        scheduler = _Scheduler(cells, out, study, keep_weights, done, stack or _stack_of(cells))
        scheduler.run(workers, threads, on_progress, should_stop)
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
        return [by_id[cell.cell_id] for cell in cells if cell.cell_id in by_id]


class _Scheduler:
    """Jobs and what they wait for."""

    def __init__(self, cells: list[Cell], out: Path, study: str, keep_weights: bool, done: set[str], stack: int):
        self.cells = {cell.cell_id: cell for cell in cells}
        self.out, self.study, self.keep_weights, self.stack = out, study, keep_weights, stack
        self.records_path = out / "records.jsonl"
        self.open = {cell.cell_id for cell in cells if cell.cell_id not in done}
        self.trunks = {group.trunk_id: group.cells for group in group_cells(cells) if len(group.cells) > 1}
        self.jobs: dict[str, _Job] = {}
        for trunk_id, members in self.trunks.items():
            missing = [cell for cell in members if cell.cell_id in self.open]
            if missing:
                self._add_trunk(trunk_id, members, missing)
        for cell_id in sorted(self.open):
            self._add_cell(self.cells[cell_id])
        self.total = sum(job.flops for job in self.jobs.values())

    def _add_trunk(self, trunk_id: str, members: tuple[Cell, ...], missing: list[Cell]) -> None:
        longest = max(members, key=lambda cell: cell.steps)
        steps = tuple(sorted({cell.branch_step for cell in missing}))
        flops = steps[-1] * longest.flops_per_step
        folder = self.out / "trunks" / trunk_id
        _drop_unusable(folder / "checkpoints", steps)
        self.jobs[f"trunk-{trunk_id}"] = _Job(
            f"trunk-{trunk_id}", longest, folder, flops, stop_at=steps[-1], keep_steps=steps
        )

    def _add_cell(self, cell: Cell) -> None:
        start_from, first = None, 0
        if cell.trunk_id in self.trunks:
            first = cell.branch_step
            start_from = self.out / "trunks" / str(cell.trunk_id) / "checkpoints" / f"step_{first:08d}"
        flops = (cell.steps - first) * cell.flops_per_step
        folder = self.out / "cells" / cell.cell_id
        self.jobs[cell.cell_id] = _Job(cell.cell_id, cell, folder, flops, start_from=start_from)

    def run(self, workers: int, threads: int, on_progress, should_stop) -> None:
        if not self.jobs:
            return
        context = multiprocessing.get_context("spawn")
        pool = [_start(context, threads, number) for number in range(min(workers, len(self.jobs)))]
        began = time.monotonic()
        last_shown = 0.0
        try:
            while self._unfinished():
                for index, worker in enumerate(pool):
                    if not worker.jobs and not should_stop():
                        worker.jobs = self._next()
                        for job in worker.jobs:
                            job.state = "running"
                        try:
                            if worker.jobs:
                                worker.pipe.send([job.message() for job in worker.jobs])
                        except (BrokenPipeError, OSError):
                            pool[index] = self._replace(context, threads, worker, index)
                if should_stop():
                    return
                if not any(worker.jobs for worker in pool):
                    raise DataError(
                        f"{self.out}: no cell can start, a trunk has lost a checkpoint; run the sweep again"
                    )
                busy = {worker.pipe: index for index, worker in enumerate(pool)}
                for pipe in wait(list(busy), timeout=1.0):
                    index = busy[pipe]  # type: ignore[index]
                    try:
                        answer = pool[index].pipe.recv()
                    except (EOFError, OSError):
                        pool[index] = self._replace(context, threads, pool[index], index)
                        continue
                    self._take(pool[index], answer)
                if on_progress is not None and time.monotonic() - last_shown > 1.0:
                    last_shown = time.monotonic()
                    on_progress(self._progress(time.monotonic() - began, pool))
            if on_progress is not None:
                on_progress(self._progress(time.monotonic() - began, pool))
        finally:
            _stop(pool)

    def _unfinished(self) -> bool:
        return any(job.state != "finished" for job in self.jobs.values())

    def _next(self) -> list[_Job]:
        """The most expensive job that can start, with others of its kind; none where none can.

        Branches first, so that a sweep that is cut off has whole sizes. What has killed a worker is tried alone.
        """
        ready = [
            job
            for job in self.jobs.values()
            if job.state == "waiting" and (job.start_from is None or (job.start_from / "state.json").is_file())
        ]
        if not ready:
            return []
        job = max(ready, key=lambda job: (job.start_from is not None, job.flops))
        if job.tries or not _stackable(job.cell):
            return [job]
        most = min(self.stack, STACKED_PARAMETERS // count_parameters(job.cell.config).n_params_total)
        alike = [other for other in ready if other.kind == job.kind and not other.tries and other is not job]
        return [job, *alike[: max(0, most - 1)]]

    def _take(self, worker: _Worker, answer: dict[str, Any]) -> None:
        if "progress" in answer:
            job = self.jobs[answer["job"]]
            span = max(1, job.last_step() - job.first_step())
            job.fraction_done = (answer["progress"]["step"] - job.first_step()) / span
            return
        jobs, worker.jobs = worker.jobs, []
        if "error" in answer:
            names = ", ".join(job.name for job in jobs)
            raise IsoflopError(f"sweep job {names} failed: {answer['error']}")
        for job, result in zip(jobs, answer["results"], strict=True):
            self._finish(job, result)

    def _finish(self, job: _Job, result: dict[str, Any]) -> None:
        if result["status"] == "interrupted":
            job.state = "waiting"
            return
        job.state = "finished"
        if job.stop_at is None:
            self._record(self.cells[job.name], result)
        elif result["status"] == "diverged":
            self._give_up_branches(job, result)
        self._tidy(job)

    def _give_up_branches(self, trunk: _Job, result: dict[str, Any]) -> None:
        """Cells beyond the point where their trunk diverged have diverged with it."""
        for job in self.jobs.values():
            if job.start_from is None or job.start_from.parent.parent != trunk.run_dir:
                continue
            if not (job.start_from / "state.json").is_file() and job.state != "finished":
                job.state = "finished"
                self._record(self.cells[job.name], result)

    def _record(self, cell: Cell, result: dict[str, Any]) -> None:
        append_record(self.records_path, cell.record(result, self.study))

    def _tidy(self, job: _Job) -> None:
        """Weights of finished cells and of trunks without open branches make room."""
        if self.keep_weights:
            return
        if job.stop_at is None:
            shutil.rmtree(job.run_dir / "checkpoints", ignore_errors=True)
        for trunk_id, members in self.trunks.items():
            users = [self.jobs.get(name) for name in (f"trunk-{trunk_id}", *(cell.cell_id for cell in members))]
            if all(user is None or user.state == "finished" for user in users):
                shutil.rmtree(self.out / "trunks" / trunk_id / "checkpoints", ignore_errors=True)

    def _replace(self, context, threads: int, worker: _Worker, number: int) -> _Worker:
        """A new process for one that died; its job goes back to the queue."""
        worker.process.join(timeout=5)
        for job in worker.jobs:
            job.tries += 1
            job.state, job.fraction_done = "waiting", 0.0
            log.warning("the worker of %s died (exit code %s); running it again", job.name, worker.process.exitcode)
            if job.tries >= TRIES:
                raise DataError(
                    f"sweep job {job.name} killed its worker {TRIES} times; look at {job.run_dir}, "
                    f"free memory or use fewer workers, and run the sweep again: finished cells are kept"
                )
        worker.pipe.close()
        return _start(context, threads, number)

    def _progress(self, seconds: float, pool: list[_Worker]) -> SweepProgress:
        share = {"waiting": lambda job: 0.0, "running": lambda job: job.fraction_done, "finished": lambda job: 1.0}
        so_far = sum(job.flops * min(1.0, share[job.state](job)) for job in self.jobs.values())
        left = (self.total - so_far) * seconds / so_far if so_far else float("inf")
        cells_open = sum(self.jobs[cell_id].state != "finished" for cell_id in self.open)
        names = ", ".join(job.name for worker in pool for job in worker.jobs)
        return SweepProgress(len(self.cells) - cells_open, len(self.cells), so_far, self.total, left, names)


def _stackable(cell: Cell) -> bool:
    """What `isoflop.training.stack` can train as one program, as far as a recipe says it."""
    config, sections = cell.config, cell.sections
    plain = config.experts is None and not config.mtp_depth and "numerics" not in sections
    return plain and sections["train"].get("optimizer") != "muon" and not sections["validate"].get("every_steps")


def _stack_of(cells: list[Cell]) -> int:
    """Runs of one shape to train at once on the device of these cells."""
    device = cells[0].sections["train"].get("device", "auto") if cells else "cpu"
    if device == "cpu":  # torch need not be imported to know it
        return 1
    from isoflop.training.device import choose_device

    return STACK if choose_device(device).type == "cuda" else 1


def _start(context, threads: int, number: int) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, threads, os.getpid(), number), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _stop(pool: list[_Worker]) -> None:
    """Idle workers leave when their pipe closes, busy ones save first; who takes too long is killed."""
    for worker in pool:
        worker.pipe.close()
        if worker.jobs:
            worker.process.terminate()
    for worker in pool:
        worker.process.join(timeout=STOP_S)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


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
        before = {cell["cell_id"] for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]}
        if before.isdisjoint(c["cell_id"] for c in planned):
            raise RecipeError(f"{out} holds another ladder (no cell in common); choose another folder with --out")
    write_json(path, {"cells": [{**p, "recipe": c.recipe} for p, c in zip(planned, cells, strict=True)]})
