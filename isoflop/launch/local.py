"""Processes of this machine as an engine: each has a pipe, serves one task at a time and shares out GPUs by number.

A worker that is asked to stop (SIGTERM), or whose parent is gone, leaves after its task has saved, so that the parent
can be started again at once. Ctrl-C is the parent's business.
"""

import logging
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from isoflop.launch.engine import STOP_S, Ended, Function, perform, use_threads


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    task: int | None = None
    began: float = 0.0


class LocalEngine:
    """`workers` processes, each of `threads` threads, started when first needed."""

    gpus: float | None = None
    lag_s = 0.0

    def __init__(self, workers: int, threads: int):
        self._threads, self._context = threads, multiprocessing.get_context("spawn")
        self._pool: list[_Worker | None] = [None] * workers
        self._count = 0

    def __enter__(self) -> "LocalEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def slots(self) -> int:
        return len(self._pool)

    def require_shared(self, folder: Path, read: list[Path]) -> None:
        """Processes of one machine see the same files."""

    def start(self, function: Function, argument: Any) -> int:
        free = [number for number, worker in enumerate(self._pool) if worker is None or worker.task is None]
        number = next((n for n in free if self._pool[n] is not None), free[0])  # one that has loaded torch already
        worker = self._pool[number] or self._spawn(number)
        try:
            worker.pipe.send((function, argument))
        except OSError:  # killed while it had nothing to do
            worker = self._spawn(number)
            worker.pipe.send((function, argument))
        self._count += 1
        worker.task, worker.began = self._count, time.monotonic()
        return self._count

    def poll(self, timeout_s: float) -> list[Ended]:
        busy = {worker.pipe: n for n, worker in enumerate(self._pool) if worker is not None and worker.task is not None}
        return [self._ended(busy[pipe]) for pipe in wait(list(busy), timeout=timeout_s)]  # type: ignore[index]

    def stop(self) -> None:
        pool = [worker for worker in self._pool if worker is not None]
        self._pool = [None] * len(self._pool)
        for worker in pool:  # the idle leave when their pipe closes
            worker.pipe.close()
            if worker.task is not None:
                worker.process.terminate()
        for worker in pool:
            worker.process.join(timeout=STOP_S)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def _spawn(self, number: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=work, args=(theirs, self._threads, os.getpid(), number), daemon=True)
        process.start()
        theirs.close()
        worker = self._pool[number] = _Worker(process, ours)
        return worker

    def _ended(self, number: int) -> Ended:
        worker = self._pool[number]
        assert worker is not None and worker.task is not None
        task, seconds, worker.task = worker.task, time.monotonic() - worker.began, None
        try:
            value, error, died = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(timeout=5)
            value, error, died = None, f"its process died (exit code {worker.process.exitcode})", True
        if died:
            worker.pipe.close()
            self._pool[number] = None
        return Ended(task, value, error, died, seconds=seconds)


def work(pipe: Connection, threads: int, parent: int, number: int) -> None:
    """Serve tasks of the process `parent` until the pipe closes."""
    asked = busy = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal asked
        asked = True
        if not busy:
            sys.exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    use_threads(threads)
    import torch

    if torch.cuda.device_count() > 1:
        torch.cuda.set_device(number % torch.cuda.device_count())
    while not asked:
        try:
            function, argument = pipe.recv()
        except (EOFError, OSError):
            return
        busy = True
        try:
            value, error = perform(function, argument, lambda: asked or os.getppid() != parent)
        except Exception as bug:
            pipe.send((None, f"{type(bug).__name__}: {bug}", True))
            raise
        try:
            pipe.send((value, error, False))
        except OSError:
            return
        busy = False
