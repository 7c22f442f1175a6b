"""A trunk or a cell on its way through a sweep: what is run, what it waits for, how far it has come.

To a worker it is plain data (`message`); how far it has come is read from its metrics, wherever it runs.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from isoflop.recipe import Tree
from isoflop.scaling.sweep.cells import Cell, stable_hash
from isoflop.scaling.sweep.speed import Speed

_LINE_BYTES = 16384
"""No line of metrics is longer (balance of experts included)."""


@dataclass
class Job:
    """One of them; its state is the sweep's to change."""

    name: str
    cell: Cell
    """What is run; of a trunk the longest of its cells."""
    run_dir: Path
    flops: float
    stop_at: int | None = None
    """The last step of a trunk; a cell goes on to its end."""
    start_from: Path | None = None
    keep_steps: tuple[int, ...] = ()
    state: str = "waiting"
    """waiting, running or finished"""
    tries: int = 0
    died_at: int = -1
    """Newest checkpoint when it died last."""

    def message(self, keep_weights: bool) -> Tree:
        """What a worker needs to know of it."""
        return {
            "name": self.name,
            "recipe": self.cell.recipe,
            "run_dir": str(self.run_dir.absolute()),
            "start_from": str(self.start_from.absolute()) if self.start_from else None,
            "stop_at": self.stop_at,
            "keep_steps": list(self.keep_steps),
            "save_at_end": keep_weights or self.stop_at is not None,
        }

    @functools.cached_property
    def kind(self) -> str:
        """The same for jobs that differ in seed and rate only: those can be trained as one program."""
        recipe = self.cell.recipe
        train = {key: value for key, value in recipe["train"].items() if key not in ("seed", "learning_rate")}
        return stable_hash([{**recipe, "train": train}, self.first_step(), self.last_step(), list(self.keep_steps)])

    def can_start(self) -> bool:
        """Whether its trunk has written the checkpoint that it starts from."""
        return self.start_from is None or (self.start_from / "state.json").is_file()

    def expected_s(self, speed: Speed) -> float:
        """Seconds of one worker."""
        steps = self.last_step() - self.first_step()
        return steps * self.cell.batch_tokens / speed(self.cell.config, self.cell.batch_tokens)

    def fraction_done(self) -> float:
        """As far as its metrics are seen here."""
        if self.state != "running":
            return float(self.state == "finished")
        first = self.first_step()
        share = (step_reached(self.run_dir) - first) / max(1, self.last_step() - first)
        return min(1.0, max(0.0, share))

    def first_step(self) -> int:
        return int(self.start_from.name.removeprefix("step_")) if self.start_from else 0

    def last_step(self) -> int:
        return self.stop_at if self.stop_at is not None else self.cell.steps


def step_reached(run_dir: Path) -> int:
    """The last step in the metrics of a run, wherever it runs; 0 where there is none yet."""
    try:
        with (run_dir / "metrics.jsonl").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _LINE_BYTES))
            whole = file.read().rpartition(b"\n")[0]
        return int(json.loads(whole.rpartition(b"\n")[2])["step"])
    except (OSError, ValueError, KeyError):
        return 0
