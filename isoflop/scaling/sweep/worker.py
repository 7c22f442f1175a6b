"""What a worker of a sweep does: train jobs of one kind at once.

A job is plain data: a recipe tree, a run folder, where to start and stop (isoflop.scaling.sweep.job). The results of
its runs are returned; what else worker and sweep tell each other lies in the folders of the runs.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

from isoflop.recipe import Tree, from_tree
from isoflop.run import only_one

LOCK_S = 180.0
"""Until the folder is free: a worker of a sweep that was killed a moment ago may still be saving there, and a file
server gives up the locks of a machine that is gone after its lease (NFSv4: 90 s)."""


def run_jobs(jobs: list[Tree], should_stop: Callable[[], bool]) -> list[Tree]:
    """Train them, as one program where they can be, and return what their `result.json` hold.

    Raises:
        IsoflopError: a recipe, tokens or checkpoints that cannot be used. OSError: a full disk, for example.
    """
    from isoflop.training.pretrain.recipe import PretrainRecipe
    from isoflop.training.pretrain.workload import Pretraining
    from isoflop.training.stack import run_stacked

    recipes = [from_tree(job["recipe"], PretrainRecipe) for job in jobs]
    run_dirs = [Path(job["run_dir"]) for job in jobs]
    with contextlib.ExitStack() as held:
        for run_dir in run_dirs:
            held.enter_context(only_one(run_dir, wait_s=LOCK_S))
        runs = [Pretraining(recipe) for recipe in recipes]
        for run, job in zip(runs, jobs, strict=True):  # weights that the sweep deletes need not be written first
            run.saving = dataclasses.replace(run.saving, at_end=job["save_at_end"])
        return run_stacked(
            runs,
            run_dirs,
            start_from=[Path(job["start_from"]) if job["start_from"] else None for job in jobs],
            stop_at=jobs[0]["stop_at"],
            keep_steps=frozenset(jobs[0]["keep_steps"]),
            on_progress=[None] * len(jobs),
            should_stop=should_stop,
        )
