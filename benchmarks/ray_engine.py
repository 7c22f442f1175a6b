"""What Ray costs a sweep of small CPU cells: 200 cells that sleep for a second, on processes and on Ray.

    python benchmarks/ray_engine.py [--cells 200] [--at-once 10]

Cells sleep, so that cores do not matter, and go through the sweep as real ones do: planned, handed out, recorded. Each
engine has run one cell per worker before, so what is compared is the time after start.
"""

import argparse
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

from isoflop.launch.engine import Engine
from isoflop.launch.local import LocalEngine
from isoflop.launch.ray import RayEngine
from isoflop.recipe import from_tree
from isoflop.scaling.sweep import run
from isoflop.scaling.sweep.cells import _RESULT_KEYS, Cell
from isoflop.scaling.sweep.ladder import LadderRecipe, plan_ladder

CELL_S = 1.0


def sleep(jobs: list[dict[str, Any]], should_stop: Any) -> list[dict[str, Any]]:
    """A cell that only takes its time."""
    time.sleep(CELL_S)
    known = {"status": "finished", "step": 1, "start_step": 0, "data_sha256": "", "loss_nats": 3.0}
    return [{**dict.fromkeys(_RESULT_KEYS), **known} for _ in jobs]


def cells_of(n: int) -> list[Cell]:
    tree = {
        "ladder": {"cells": [[1e10, 1e5]], "seeds": list(range(n)), "share_trunks": False},
        "hyper": {"learning_rate": 0.003, "batch_tokens": 4096},
        "train": {"device": "cpu"},
    }
    planned = plan_ladder(from_tree(tree, LadderRecipe)).cells
    for cell in planned:
        cell.sections["data"]["tokens"] = "."  # none are read
    return list(planned)


def timed(engine: Engine, n: int, at_once: int) -> tuple[float, float]:
    """Seconds to start, with one cell per worker, and of the n cells after it."""
    kept: Any = _Kept(engine)
    with engine, tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        run.run_sweep(cells_of(at_once), Path(folder) / "first", study="first", engine=kept)
        started = time.perf_counter()
        run.run_sweep(cells_of(n), Path(folder) / "sweep", study="sleep", engine=kept)
        return started - began, time.perf_counter() - started


class _Kept:
    """The engine, whose processes outlive a sweep that is over."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def stop(self) -> None:
        assert not self._engine.poll(0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=10)
    asked = parser.parse_args()
    run.run_jobs = sleep  # type: ignore[assignment]
    import ray

    ray.init(
        address="local",
        num_cpus=asked.at_once,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    ideal = CELL_S * -(-asked.cells // asked.at_once)
    print(f"{asked.cells} cells of {CELL_S:g} s, {asked.at_once} at a time: {ideal:.0f} s at least")
    engines = {
        "local": LocalEngine(asked.at_once, 1),
        "ray": RayEngine("", threads=1, gpus=None, device="cpu", max_tasks=asked.at_once),
    }
    found = {name: timed(engine, asked.cells, asked.at_once) for name, engine in engines.items()}
    for name, (start_s, cells_s) in found.items():
        print(f"  {name:5}  start {start_s:6.1f} s, cells {cells_s:6.2f} s")
    print(f"  ray / local: {found['ray'][1] / found['local'][1]:.3f} (must be at most 1.2)")
    ray.shutdown()


if __name__ == "__main__":
    main()
