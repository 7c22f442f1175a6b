"""What a scheduler asks of the processes that work for it: start a task, poll for those that ended, stop.

A task is a function that can be imported by its name and plain data for it. Which task is next, how often one is tried
and what is recorded is the scheduler's: an engine never repeats anything. `local` has processes of this machine, `ray`
those of a cluster.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from isoflop.errors import IsoflopError

Function = Callable[[Any, Callable[[], bool]], Any]
"""(argument, should_stop) -> plain data. Once should_stop() is true it saves and returns."""
STOP_S = 30.0
"""How long a task may take to save when it is asked to stop."""


@dataclass(frozen=True)
class Ended:
    """A task that is over."""

    task: int
    value: Any = None
    """What it returned."""
    error: str = ""
    """Why it returned nothing."""
    died: bool = False
    """Its process is gone, or it raised what no user can cause: another try may help."""
    node: str = ""
    """Where it ran; empty on this machine."""
    seconds: float = 0.0
    """How long it ran, where that is known."""


class Engine(Protocol):
    """Processes that work for a scheduler. Use it in a `with`: the end stops what still runs."""

    lag_s: float
    """What another machine has written may be seen so much later here."""

    @property
    def gpus(self) -> float | None:
        """Of a task; None: those of this machine are shared out."""
        ...

    def slots(self) -> int:
        """Tasks that should be under way at a time; may change while a cluster grows or shrinks."""
        ...

    def require_shared(self, folder: Path, read: list[Path]) -> None:
        """Raises DataError where a worker does not see `folder`, in which tasks write, or one of the paths."""
        ...

    def start(self, function: Function, argument: Any) -> int:
        """Hand over a task and return its number."""
        ...

    def poll(self, timeout_s: float) -> list[Ended]:
        """Tasks that have ended, after at most so many seconds.

        Raises:
            IsoflopError: no task can run, wherever it is.
        """
        ...

    def stop(self) -> None:
        """Ask all tasks to save and leave; who takes longer than STOP_S is killed. Tasks may be started after it."""
        ...

    def __enter__(self) -> "Engine": ...

    def __exit__(self, *_: object) -> None: ...


def use_threads(threads: int) -> None:
    """So many for products in this process, wherever it runs: sums, and so records, depend on the number."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is loaded
    import torch

    torch.set_num_threads(threads)


def perform(function: Function, argument: Any, should_stop: Callable[[], bool]) -> tuple[Any, str]:
    """What the function returned, or the message of an error that running it again does not cure."""
    try:
        return function(argument, should_stop), ""
    except (IsoflopError, OSError) as error:  # a full disk, for example
        return None, str(error) or type(error).__name__
