"""A sweep's worker process: one job at a time from its pipe, one answer for each.

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
            job = pipe.recv()
        except (EOFError, OSError):
            return
        busy = True
        try:
            answer = {"job": job["name"], "result": _run(job, pipe, lambda: asked or os.getppid() != parent)}
        except (IsoflopError, OSError) as error:  # a full disk, for example: running it again does not help
            answer = {"job": job["name"], "error": str(error)}
        try:
            pipe.send(answer)
        except OSError:
            return
        busy = False


def _run(job: dict[str, Any], pipe: Connection, orphaned) -> dict[str, Any]:
    from isoflop.training.pretrain.recipe import PretrainRecipe
    from isoflop.training.pretrain.workload import run_pretrain

    recipe = from_tree(job["recipe"], PretrainRecipe)
    run_dir = Path(job["run_dir"])
    last_sent = 0.0

    def report(progress) -> None:
        nonlocal last_sent
        if time.monotonic() - last_sent > 1.0:
            last_sent = time.monotonic()
            figures = {"step": progress.step, "tokens_per_s": progress.tokens_per_s, "loss_nats": progress.loss_nats}
            with contextlib.suppress(OSError):  # the sweep is gone: save first
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
