"""What a person sees: progress bars, tables, warnings, and what Ctrl-C does. The command line prints through here."""

import contextlib
import io
import math
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.recipe import write_json


class Bar:
    """One progress bar; where standard error is not a terminal, a plain line after 2, 4, 8 and then every 30 s."""

    def __init__(self, unit: str, label: str = ""):
        from tqdm import tqdm

        self._plain = not sys.stderr.isatty()
        self._bar = tqdm(
            unit=unit,
            unit_scale=True,
            desc=label,
            dynamic_ncols=True,
            mininterval=0.3,
            leave=False,
            delay=1.0,  # what is refused at once gets no bar before its message
            file=io.StringIO() if self._plain else None,
        )
        self._wait_s = 2.0
        self._next_s = time.monotonic() + self._wait_s

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def stage(self, stage: str, done: float, total: float) -> None:
        """Corpus and tokens."""
        self._bar.set_description(stage, refresh=False)
        self._move(done, total)

    def sweep(self, progress: Any) -> None:
        """Cells of a sweep."""
        expected = "" if progress.expected_s is None else f" of about {hours(progress.expected_s)}"
        cost = f", worker time {hours(progress.worker_s)}{expected}"
        self._bar.set_description(f"sweep {progress.cells_done}/{progress.cells_total} cells{cost}", refresh=False)
        self._move(progress.flops_done, progress.flops_total)

    def training(self, progress: Any) -> None:
        """A run."""
        share = "" if progress.share_of_peak is None else f", {progress.share_of_peak:.0%} of peak"
        bits = "" if progress.bits_per_byte is None else f", {progress.bits_per_byte:.3f} bits/byte"
        end = progress.final_loss
        final = "" if end is None else f", final loss {end.center:.2f} ({end.low:.2f} to {end.high:.2f})"
        self._bar.set_description(
            f"step {progress.step}/{progress.n_steps}, loss {progress.loss_nats:.3f}{bits}{final}{share}", refresh=False
        )
        self._move(progress.n_tokens, progress.n_tokens / max(progress.step, 1) * progress.n_steps)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._bar.write(f"isoflop: {text}", file=sys.stderr)

    def _move(self, done: float, total: float) -> None:
        if total != self._bar.total:
            self._bar.total = total
            self._bar.reset(total) if done < self._bar.n else None
        self._bar.update(done - self._bar.n)
        if self._plain and time.monotonic() >= self._next_s:
            done_text = f"{done / total:.0%}" if total else f"{done:g}"
            print(
                f"isoflop: {self._bar.desc.removesuffix(': ')}, {done_text}{self._left()}", file=sys.stderr, flush=True
            )
            self._wait_s = min(2 * self._wait_s, 30.0)
            self._next_s = time.monotonic() + self._wait_s

    def _left(self) -> str:
        """Time that is left at the speed so far."""
        facts = self._bar.format_dict
        if not facts["total"] or not facts["n"]:
            return ""
        seconds = round(facts["elapsed"] * (facts["total"] - facts["n"]) / facts["n"])
        return f", about {seconds // 60} min {seconds % 60} s left" if seconds >= 60 else f", about {seconds} s left"


def hours(seconds: float) -> str:
    """For a glance: 45 s, 12 min, 3.4 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Any]:
    """Ctrl-C or SIGTERM asks the work to save and stop; Ctrl-C after it exits immediately.

    A second SIGTERM changes nothing: schedulers send it to a whole group of processes while a script of the job hands
    it on, and whoever cannot wait for the save has SIGKILL.
    """
    asked = False

    def handle(number: int, _frame: object) -> None:
        nonlocal asked
        if asked:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        asked = True
        print("isoflop: saving and stopping; press Ctrl-C again to exit immediately", file=sys.stderr)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(text: str) -> None:
    print(text, flush=True)


def report_found(found: dict[str, Any], json: Path | None, headline: str, rows: list[tuple[str, str]]) -> None:
    """Write what was found, then show it: a closed pipe costs the picture, not the file."""
    if json is not None:
        write_json(json, found)
    print_rows(rows)
    print(headline)


def print_rows(rows) -> None:
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")


def print_table(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    cells = [list(rows[0]), *([shown(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row in cells:
        print("  " + "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))


def print_warnings(warnings) -> None:
    for warning in warnings:
        print(f"  warning: {warning}")


def flat(tree: dict[str, Any], prefix: str = "", depth: int = 3) -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict) and depth > 1:
            yield from flat(value, f"{prefix}{key}.", depth - 1)
        elif not isinstance(value, (dict, list)) or (isinstance(value, list) and len(value) <= 4):
            yield f"{prefix}{key}", shown(value)


def shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else "-"
    if isinstance(value, (list, tuple)):
        return " .. ".join(shown(item) for item in value)
    return str(value)
