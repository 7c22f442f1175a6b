"""The entrance: `Sandbox` runs jobs in supervisors of its own and refuses all of them where it cannot hold.

    with Sandbox() as sandbox:
        outcome = sandbox.run(Job(code, Tests("assert f(2) == 4")))

Where a required layer is missing, nothing is run: every job's verdict is `refused`, `protection` says why.
"""

import queue
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from isoflop.errors import SandboxError
from isoflop.sandbox.jobs import Job, Outcome, Verdict
from isoflop.sandbox.protection import NEEDS, Protection, assess
from isoflop.sandbox.worker import Worker


class Sandbox:
    """Supervisors, one job at a time each; `run` may be called from several threads.

    Args:
        n_workers: supervisors, thus jobs at the same time.
        packages: folders with packages that answers may import, readable for them.
    """

    def __init__(self, n_workers: int = 1, packages: Iterable[Path] = ()) -> None:
        if n_workers < 1:
            raise SandboxError(f"n_workers = {n_workers} must be at least 1; one per processor is a good number")
        self._workers: list[Worker] = []
        self._free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self.protection = self._open(n_workers, tuple(str(Path(p).resolve()) for p in packages))

    def _open(self, n_workers: int, packages: tuple[str, ...]) -> Protection:
        if sys.platform != "linux":
            why = f"{sys.platform} has none of the layers"
            return Protection(dict.fromkeys(NEEDS, why), {}, 0, sys.version.split()[0])
        try:
            for _ in range(n_workers):
                self._workers.append(Worker(packages))
        except SandboxError as error:
            return Protection({name: str(error) for name in NEEDS}, {}, 0, sys.version.split()[0])
        first = self._workers[0]
        protection = assess(first.layers, first.python, first.run)
        for worker in self._workers:
            if set(worker.layers["missing"]) != set(protection.missing_layers):
                why = f"workers differ in their layers: {worker.layers['missing']}, {protection.missing_layers}"
                return Protection(dict.fromkeys(NEEDS, why), protection.missing_layers, 0, first.python)
            self._free.put(worker)
        return protection

    def run(self, job: Job) -> Outcome:
        """Run one job as soon as a worker is free."""
        if not self.protection.holds:
            return Outcome(Verdict.REFUSED, self.protection.refusal())
        worker = self._free.get()
        try:
            return worker.run(job)
        finally:
            self._free.put(worker)

    def run_all(self, jobs: Iterable[Job]) -> list[Outcome]:
        """Outcomes in the order of the jobs, as many at a time as there are workers."""
        with ThreadPoolExecutor(max(1, len(self._workers))) as pool:
            return list(pool.map(self.run, jobs))

    def require(self) -> None:
        """Stop before any work is done for nothing.

        Raises:
            SandboxError: jobs would be refused here.
        """
        if not self.protection.holds:
            raise SandboxError(self.protection.refusal())

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self._workers = []

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        self.close()
