"""What is asked of the sandbox and what comes back, as plain data.

A job is a program that a model wrote (`code`) and a way to check it. `Calls` names a function of it, gives arguments
and the values that must come back; they are compared in this process. `Tests` is test code with asserts; it runs in a
process of its own, in which every name of the answer stands for a request to the answer's process, so the answer
cannot reach what checks it.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from isoflop.errors import SandboxError

MIB = 2**20


class Verdict(StrEnum):
    """How a job ended. Only `passed` is a success; `refused` says nothing about the answer."""

    PASSED = "passed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    OUTPUT = "output"
    KILLED = "killed"
    REFUSED = "refused"


@dataclass(frozen=True)
class Limits:
    """What one process of a job may use; all are assumptions, set far above what short exercises need."""

    wall_s: float = 10.0
    """Seconds of wall clock for the whole job; processor time is limited to the same, rounded up."""
    memory_bytes: int = 512 * MIB
    """Address space of each process, at least 128 MiB."""
    output_bytes: int = MIB
    """Printed text, and values handed back, of one process."""
    disk_bytes: int = 16 * MIB
    """Size of the job's own folder, and of any file in it."""
    n_files: int = 1024
    """Files and folders in the job's own folder."""
    n_threads: int = 16
    """Threads beside the first one."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.wall_s) and self.wall_s > 0):
            raise SandboxError(f"limits.wall_s = {self.wall_s} must be above 0 and finite; give seconds")
        for name, least in (("memory_bytes", 128 * MIB), ("output_bytes", 1), ("disk_bytes", 0), ("n_files", 1)):
            if getattr(self, name) < least:
                raise SandboxError(f"limits.{name} = {getattr(self, name)} must be at least {least}; give more")
        if self.n_threads < 0:
            raise SandboxError(f"limits.n_threads = {self.n_threads} must be at least 0; 0 means the first thread only")


@dataclass(frozen=True)
class Call:
    """One call of the named function, and the value it must return."""

    arguments: tuple[Any, ...]
    expected: Any
    keywords: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Calls:
    """Values are asked for and compared in the parent: same types (numbers among themselves), same content."""

    function: str
    calls: tuple[Call, ...]
    tolerance: float = 0.0
    """Relative and absolute difference allowed between numbers of which one is a float."""


@dataclass(frozen=True)
class Tests:
    """Asserts over names of the answer, run beside it in a second process."""

    code: str
    helpers: str = ""
    """Code that is run before: what the exercise itself defines and the answer must not replace."""
    remote: tuple[str, ...] = ()
    """Names taken from the answer although `helpers` defines them, such as the function asked for."""

    __test__ = False  # pytest collects classes of this name


@dataclass(frozen=True)
class Job:
    code: str
    check: Calls | Tests
    limits: Limits = Limits()


@dataclass(frozen=True)
class Outcome:
    verdict: Verdict
    detail: str = ""
    """The error, signal or limit, in one line."""
    output: str = ""
    """What the answer printed, at most `limits.output_bytes`."""
    values: tuple[Any, ...] = ()
    """What the calls returned, as far as they came."""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    max_rss_bytes: int = 0
