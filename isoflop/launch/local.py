"""Processes of this machine as an engine: each has a pipe and serves one task at a time.

On GPUs the workers of one card are threads of one process, each with a stream of its own: kernels of small models leave
most of a card idle, and those of several processes take turns, while those of several streams run side by side.

A worker that is asked to stop (SIGTERM), or whose parent is gone, leaves after its task has saved, so that the parent
can be started again at once. Ctrl-C is the parent's business.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
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
    """`workers` of `threads` threads each, started when first needed: processes, or on GPUs a process for each card.

    `cuda`: tasks use the GPUs of this machine, if it has some.
    """

    gpus: float | None = None
    lag_s = 0.0

    def __init__(self, workers: int, threads: int, *, cuda: bool = False):
        self._threads, self._cuda, self._context = threads, cuda, multiprocessing.get_context("spawn")
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
        # On the card with the least to do, one that has loaded torch already.
        number = min(free, key=lambda n: (sum(map(self._at_work, self._of_card(n))), self._pool[n] is None))
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

    def _at_work(self, number: int) -> bool:
        worker = self._pool[number]
        return worker is not None and worker.task is not None

    def _of_card(self, number: int) -> range:
        """The workers that share a GPU with this one, itself among them."""
        cards = _cards() if self._cuda else 0
        return range(number % cards, len(self._pool), cards) if cards else range(number, number + 1)

    def _spawn(self, number: int) -> _Worker:
        """Start the process of this worker, with those of the same GPU that have none."""
        numbers = [number, *(n for n in self._of_card(number) if n != number and self._pool[n] is None)]
        pipes = [self._context.Pipe() for _ in numbers]
        theirs = [pipe for _, pipe in pipes]
        process = self._context.Process(target=work, args=(theirs, self._threads, os.getpid(), number), daemon=True)
        process.start()
        for n, (ours, other) in zip(numbers, pipes, strict=True):
            other.close()
            self._pool[n] = _Worker(process, ours)
        worker = self._pool[number]
        assert worker is not None
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


def _cards() -> int:
    import torch

    return torch.cuda.device_count()


def work(pipes: list[Connection], threads: int, parent: int, number: int) -> None:
    """Serve tasks of the process `parent`, one at a time from each pipe, until the pipes close."""
    asked = False
    busy: set[Connection] = set()

    def stop(_number: int, _frame: object) -> None:
        nonlocal asked
        asked = True
        if not busy:
            sys.exit(0)

    def serve(pipe: Connection) -> None:
        while not asked:
            try:
                function, argument = pipe.recv()
            except (EOFError, OSError):
                return
            busy.add(pipe)
            try:
                value, error = perform(function, argument, lambda: asked or os.getppid() != parent)
            except Exception as bug:
                pipe.send((None, f"{type(bug).__name__}: {bug}", True))
                busy.remove(pipe)
                raise
            try:
                pipe.send((value, error, False))
            except OSError:
                return
            finally:
                busy.remove(pipe)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    use_threads(threads)
    import torch

    card = number % max(1, torch.cuda.device_count())
    if len(pipes) == 1:
        if torch.cuda.device_count() > 1:
            torch.cuda.set_device(card)
        serve(pipes[0])
    else:
        _serve_at_once(pipes, serve, card, lambda: asked and not busy)


def _serve_at_once(
    pipes: list[Connection], serve: Callable[[Connection], None], card: int, leave: Callable[[], bool]
) -> None:
    """A thread for each pipe, with its stream on the card."""
    import torch

    from isoflop.model.attention import fastest_kernels

    def on_own_stream(pipe: Connection) -> None:
        if torch.cuda.is_available():  # else a test
            torch.cuda.set_device(card)
            torch.cuda.set_stream(torch.cuda.Stream())
        serve(pipe)

    torch.ones(32, 32).mm(torch.ones(32, 32))  # libraries of products set themselves up at the first: by one thread
    threads = [threading.Thread(target=on_own_stream, args=(pipe,), daemon=True) for pipe in pipes]
    with fastest_kernels(torch.device("cuda", card)):  # a setting of the process: threads must not take turns at it
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) and not leave():
            time.sleep(0.05)
