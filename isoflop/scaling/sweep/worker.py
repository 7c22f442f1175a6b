"""A sweep's worker process: jobs of one kind from its pipe, trained at once, one answer for them.

A job is plain data: a recipe tree, a run folder, where to start and stop. When its sweep asks it to stop (SIGTERM) or
is gone, a worker leaves after saving, so that the sweep can be started again at once. Ctrl-C is the sweep's business.
"""

import contextlib
import logging
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from isoflop.errors import IsoflopError
from isoflop.recipe import from_tree
from isoflop.run import only_one


def work(pipe: Connection, threads: int, parent: int, number: int) -> None:
    """Serve jobs of the process `parent` until the pipe closes, with so many threads; GPUs are shared out by number."""
    asked = busy = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal asked
        asked = True
        if not busy:
            sys.exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    import torch

    torch.set_num_threads(threads)
    if torch.cuda.device_count() > 1:
        torch.cuda.set_device(number % torch.cuda.device_count())
    while not asked:
        try:
            jobs = pipe.recv()
        except (EOFError, OSError):
            return
        busy = True
        try:
            answer = {"results": _run(jobs, pipe, lambda: asked or os.getppid() != parent)}
        except (IsoflopError, OSError) as error:  # a full disk, for example: running it again does not help
            answer = {"error": str(error)}
        try:
            pipe.send(answer)
        except OSError:
            return
        busy = False


def _run(jobs: list[dict[str, Any]], pipe: Connection, orphaned) -> list[dict[str, Any]]:
    from isoflop.training.pretrain.recipe import PretrainRecipe
    from isoflop.training.pretrain.workload import Pretraining
    from isoflop.training.stack import run_stacked

    recipes = [from_tree(job["recipe"], PretrainRecipe) for job in jobs]
    run_dirs = [Path(job["run_dir"]) for job in jobs]

    # A worker of a sweep that was killed a moment ago may still be saving here.
    with contextlib.ExitStack() as held:
        for run_dir in run_dirs:
            held.enter_context(only_one(run_dir, wait_s=60.0))
        return run_stacked(
            [Pretraining(recipe) for recipe in recipes],
            run_dirs,
            start_from=[Path(job["start_from"]) if job["start_from"] else None for job in jobs],
            stop_at=jobs[0]["stop_at"],
            keep_steps=frozenset(jobs[0]["keep_steps"]),
            on_progress=[_reporter(pipe, job["name"]) for job in jobs],
            should_stop=orphaned,
        )


def _reporter(pipe: Connection, name: str):
    """Sends the progress of a job, at most once a second."""
    last_sent = 0.0

    def report(progress) -> None:
        nonlocal last_sent
        if time.monotonic() - last_sent > 1.0:
            last_sent = time.monotonic()
            figures = {"step": progress.step, "tokens_per_s": progress.tokens_per_s, "loss_nats": progress.loss_nats}
            with contextlib.suppress(OSError):  # the sweep is gone: save first
                pipe.send({"job": name, "progress": figures})

    return report
