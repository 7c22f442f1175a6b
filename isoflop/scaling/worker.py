"""A sweep's worker process: one job at a time from its pipe, one answer for each.

A job is plain data: a recipe tree, a run folder, where to start and stop. The worker notices when its sweep is gone and
leaves after saving, so that a killed sweep can be started again at once.
"""

import logging
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from isoflop.errors import IsoflopError
from isoflop.recipe import from_tree
from isoflop.run import only_one


def work(pipe: Connection, threads: int) -> None:
    """Serve jobs until the pipe closes. Runs in a process of its own, so it may set the number of threads."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    import torch

    torch.set_num_threads(threads)
    parent = os.getppid()
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        try:
            answer = {"job": job["name"], "result": _run(job, pipe, lambda: os.getppid() != parent)}
        except IsoflopError as error:
            answer = {"job": job["name"], "error": str(error)}
        except KeyboardInterrupt:
            return
        try:
            pipe.send(answer)
        except (BrokenPipeError, OSError):
            return


def _run(job: dict[str, Any], pipe: Connection, orphaned) -> dict[str, Any]:
    from isoflop.training.pretrain import PretrainRecipe, run_pretrain

    recipe = from_tree(job["recipe"], PretrainRecipe)
    run_dir = Path(job["run_dir"])
    last_sent = 0.0

    def report(progress) -> None:
        nonlocal last_sent
        if time.monotonic() - last_sent > 1.0:
            last_sent = time.monotonic()
            figures = {"step": progress.step, "tokens_per_s": progress.tokens_per_s, "loss_nats": progress.loss_nats}
            pipe.send({"job": job["name"], "progress": figures})

    # A worker of a sweep that was killed a moment ago may still be saving here.
    with only_one(run_dir, wait_s=60.0):
        return run_pretrain(
            recipe,
            run_dir,
            start_from=Path(job["start_from"]) if job.get("start_from") else None,
            stop_at=job.get("stop_at"),
            keep_steps=frozenset(job.get("keep_steps", ())),
            on_progress=report,
            should_stop=orphaned,
        )
