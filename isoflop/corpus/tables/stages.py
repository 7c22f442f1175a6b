"""Bookkeeping of a build: stages that are made of tasks, each of which is done once, whatever happens in between.

    ROOT/NAME-FINGERPRINT/        what a stage writes
        done/TASK.json            summary of a finished task; a task without one is done (again)
        stage.json                all summaries in order: the stage is complete

A fingerprint covers the options of a stage and the fingerprints of those it reads from, so after a change of the recipe
exactly the stages that depend on it are made anew. A task is a pure function of its stage's inputs that writes files
under final names and returns a summary as plain data. Which process or machine runs it, and when, changes nothing.
"""

import hashlib
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from isoflop.errors import DataError
from isoflop.recipe import write_json
from isoflop.run import cores

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""on_progress(what, done, total): bytes; of deduplication, tasks."""

Engine = Literal["native", "ray"]
FORMAT = 1
"""Part of every fingerprint: raise it when a stage means something else than before."""


@dataclass(frozen=True)
class Task:
    """One call of a stage's function."""

    name: str
    """File name of its summary; unique within the stage."""
    arguments: tuple[Any, ...]
    weight: int = 1
    """Bytes, for progress."""


def fingerprint(*parts: Any) -> str:
    """16 hex digits of plain data."""
    return hashlib.sha256(json.dumps([FORMAT, *parts], sort_keys=True).encode()).hexdigest()[:16]


class Workers:
    """Runs tasks in this process, in several processes, or on a Ray cluster. Processes start when first needed.

    Raises:
        DataError: engine "ray" without the package ray.
    """

    def __init__(self, n: int, engine: Engine = "native", address: str = ""):
        self.n, self.engine = max(1, n), engine
        self._pool: ProcessPoolExecutor | None = None
        if engine == "ray":
            _start_ray(self.n, address)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end_processes(at_once=kind is not None)
        if self.engine == "ray":
            import ray

            ray.shutdown()

    def map(self, function: Callable[..., Any], tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        """(task, result) as they end; at most a few are in flight, so that results never pile up."""
        if self.engine == "ray":
            yield from self._on_ray(function, tasks)
        elif self.n == 1 or len(tasks) < 2:
            for task in tasks:
                yield task, function(*task.arguments)
        else:
            yield from self._in_processes(function, tasks)

    def run(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Results of calls with these arguments as they end; the form in which deduplication asks for work."""
        tasks = [Task(str(number), given) for number, given in enumerate(arguments)]
        yield from (result for _, result in self.map(function, tasks))

    def alone(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """One call in a process of its own, with no other beside it: what it takes is given back when it ends.

        Where there are no processes, or Ray has them, it runs in this one.
        """
        if self.engine == "ray" or self.n == 1:
            return function(*arguments)
        self._end_processes()
        try:
            (result,) = (result for _, result in self._in_processes(function, [Task("alone", arguments)]))
            return result
        finally:
            self._end_processes()

    def _end_processes(self, *, at_once: bool = False) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=not at_once, cancel_futures=True)
            self._pool = None

    def _in_processes(self, function: Callable[..., Any], tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        if self._pool is None:  # spawn: threads of Arrow and a forked child do not go together
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.n, mp_context=context, initializer=_end_with_parent)
        pool, waiting, running = self._pool, iter(tasks), dict[Future[Any], Task]()

        def start(count: int) -> None:
            for task in islice(waiting, count):
                running[pool.submit(function, *task.arguments)] = task

        try:
            start(2 * self.n)
            while running:
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    yield running.pop(future), future.result()
                start(len(ended))
        except BrokenProcessPool as error:
            raise DataError(
                f"a worker process was killed, probably out of memory; finished work is kept: run the same "
                f"command again, with workers below {self.n} or more partitions if it happens again"
            ) from error

    def _on_ray(self, function: Callable[..., Any], tasks: Sequence[Task]) -> Iterator[tuple[Task, Any]]:
        import ray

        remote = ray.remote(function)
        waiting, running = iter(tasks), dict[Any, Task]()
        limit = max(2, 2 * int(ray.cluster_resources().get("CPU", self.n)))
        while True:
            while len(running) < limit and (task := next(waiting, None)) is not None:
                running[remote.remote(*task.arguments)] = task
            if not running:
                return
            ended, _ = ray.wait(list(running), num_returns=1)
            for reference in ended:
                yield running.pop(reference), ray.get(reference)


@dataclass
class Stage:
    """One stage of a build: its folder and what its tasks said."""

    name: str
    folder: Path
    fingerprint: str
    summaries: list[Any] = field(default_factory=list)
    seconds: float = 0.0
    """Wall time of this process's work on it; 0 for a stage that was there."""
    n_bytes: int = 0
    """What its tasks weigh together."""

    @property
    def is_complete(self) -> bool:
        return (self.folder / "stage.json").is_file()


def remove_stage(folder: Path) -> None:
    """Its marks first: what a kill leaves behind must not look finished."""
    (folder / "stage.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "done", ignore_errors=True)
    shutil.rmtree(folder)


class Build:
    """The folder of all stages of one build, and who works on them."""

    def __init__(self, root: Path, workers: Workers, on_progress: Progress | None = None):
        self.root, self.workers = root, workers
        self.stages: list[Stage] = []
        self._on_progress = on_progress

    def open(self, name: str, options: Any, after: Iterable[Stage] = (), *, fresh: bool = False) -> Stage:
        """The stage with these options on these inputs: its folder with whatever is finished of it.

        Folders of the same stage with other options are removed: they belong to an older recipe. `fresh`: this one too.
        """
        mark = fingerprint(name, options, *[stage.fingerprint for stage in after])
        stage = Stage(name, self.root / f"{name}-{mark}", mark)
        for old in self.root.glob(f"{name}-*"):
            if (old != stage.folder or fresh) and len(old.name) == len(stage.folder.name):
                remove_stage(old)
        (stage.folder / "done").mkdir(parents=True, exist_ok=True)
        self.stages.append(stage)
        return stage

    def run(self, stage: Stage, function: Callable[..., Any], tasks: Sequence[Task]) -> list[Any]:
        """Do what is missing, and return the summaries of all tasks in their order."""
        stage.n_bytes = total = sum(task.weight for task in tasks)
        if stage.is_complete:
            stage.summaries = json.loads((stage.folder / "stage.json").read_text(encoding="utf-8"))
            return stage.summaries
        began = time.monotonic()
        missing = [task for task in tasks if not _summary(stage, task).is_file()]
        done = total - sum(task.weight for task in missing)
        if len(missing) < len(tasks):
            log.info("%s: going on, %d of %d tasks were done", stage.name, len(tasks) - len(missing), len(tasks))
        self._report(stage.name, done, total)
        for task, summary in self.workers.map(function, missing):
            write_json(_summary(stage, task), summary)
            done += task.weight
            self._report(stage.name, done, total)
        stage.summaries = [json.loads(_summary(stage, task).read_text(encoding="utf-8")) for task in tasks]
        write_json(stage.folder / "stage.json", stage.summaries)
        stage.seconds = time.monotonic() - began
        return stage.summaries

    def once(self, stage: Stage, function: Callable[[Progress], Any], *, weight: int = 1) -> Any:
        """A stage that keeps its own books in its folder: run it if it is not complete. It gets a progress to call."""
        stage.n_bytes = weight
        if not stage.is_complete:
            began = time.monotonic()
            write_json(stage.folder / "stage.json", [function(self._report)])
            stage.seconds = time.monotonic() - began
        stage.summaries = json.loads((stage.folder / "stage.json").read_text(encoding="utf-8"))
        return stage.summaries[0]

    def _report(self, what: str, done: int, total: int) -> None:
        if self._on_progress:
            self._on_progress(what, done, max(1, total))


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever, and may be in the middle of writing."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def n_workers(wanted: int, n_bytes: int, *, parallel_from: int) -> int:
    """Processes to use: as many as wanted, else one per core up to 8, and none for small inputs."""
    return wanted or (min(8, cores()) if n_bytes >= parallel_from else 1)


def _summary(stage: Stage, task: Task) -> Path:
    return stage.folder / "done" / f"{task.name}.json"


def _start_ray(n: int, address: str) -> None:
    try:
        import ray
    except ImportError as error:
        raise DataError('engine = "ray" needs ray; pip install isoflop[cluster], or set engine = "native"') from error
    # inside a task Daft would otherwise start its own runner on the same cluster
    environment = {"env_vars": {"DAFT_RUNNER": "native", "DO_NOT_TRACK": "1", "DAFT_PROGRESS_BAR": "0"}}
    if address:
        ray.init(address=address, log_to_driver=False, runtime_env=environment)
    else:
        ray.init(num_cpus=n, include_dashboard=False, log_to_driver=False, runtime_env=environment)
