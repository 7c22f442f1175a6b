"""From evaluated cells to benchmark scores in two steps: records of `isoflop eval` -> `Laws.benchmarks`.

The bits per byte of right answers fall with size and tokens as any loss does, also where accuracy still stands at
chance; accuracy is a sigmoid of them that starts at chance and, at 0 bits, ends at 1. Resample i of both steps weighs
the runs alike, so that a plan carries the doubt of the first into the second. Only files are read: no model, no torch.

Source: Bhagia et al., arXiv 2412.04403, section 3. Where we deviate: a sweep's few cells need the priors of its other
laws, and the floor of the sigmoid is chance, where the records say it.

Shapes: R resamples, S runs, P pairs of the second step (of every run one or more), the anchor at 0 bits not counted.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from isoflop.errors import DataError, FitError, undamaged
from isoflop.recipe import Tree
from isoflop.run import read_json_lines
from isoflop.scaling.fit.joint import LEAST_CELLS, fit_cells
from isoflop.scaling.fit.law_set import Sweep, find_centre, joint_weights, resample
from isoflop.scaling.fit.parametric import Points, fit_centre, make_objective, minimise
from isoflop.scaling.fit.solver import least_squares
from isoflop.scaling.fit.table import Table
from isoflop.scaling.laws import Laws, Surface, TaskLaw, task_metric

BITS = "answer_bits_per_byte"
FLOOR_SHARE, FLOOR_SPREAD = 0.5, 0.5
"""Prior of the bits that no compute removes: median as a share of the lowest ones measured, and standard deviation of
its logarithm (assumption; the published fits of eight tasks have 0 to 1.2 bits)."""
TOPS = (1.0, 0.95, 0.9, 0.85)
"""Score at 0 bits: resamples take these in turn, the centre the first, as published (assumption: labels are not all
right, and between what a small sweep has seen and the top a sigmoid is only the simplest guess)."""
STEEPNESS, MIDDLES = (0.5, 2.0, 5.0, 12.0), 6
"""Where the descent of a sigmoid starts; middles are spread over the measured bits."""


@dataclass(frozen=True)
class Seen:
    """Pairs of the second step."""

    bits: np.ndarray
    score: np.ndarray
    run: np.ndarray
    """Number of the run that each pair is of."""
    n_items: int = 0
    """Of a score, whose own curve may leave the sigmoid by what so few items leave open; 0: many."""


def fit_sigmoid(
    seen: Seen, weight_RS: np.ndarray, weight_S: np.ndarray, *, chance: float | None = None
) -> tuple[list[list[float]], float]:
    """Floor, top, steepness and middle by least squares, for the runs and then every resample; and what it leaves.

    The point (0 bits, score 1) is one more pair; resamples doubt the 1 (`TOPS`). Without
    `chance` the floor is free, which needs runs well above it.
    """
    bits_P = np.append(seen.bits, 0.0)
    free = np.array([chance is None, True, True, True])
    floor = seen.score.min() - 0.01 if chance is None else chance
    bounds = np.array([-2.0 if chance is None else floor, floor, 0.0, 0.0]), np.array([1.0, 1.0, 200.0, 50.0])

    def residuals(theta_R4: np.ndarray, top: float = TOPS[0]) -> np.ndarray:
        return task_metric(theta_R4[:, None], bits_P) - np.append(seen.score, top)

    def weights(weight: np.ndarray) -> np.ndarray:
        return np.concatenate([weight[:, seen.run], np.ones((len(weight), 1))], axis=1)

    middles = np.quantile(seen.bits, np.linspace(0, 1, MIDDLES)) * np.linspace(0.6, 1, MIDDLES)
    starts = np.array([[floor, 1.0, steep, middle] for steep in STEEPNESS for middle in middles])
    found, cost = least_squares(residuals, starts, weights(weight_S[None]), bounds=bounds, free=free)
    best = found[cost.argmin()]
    many = np.tile(best, (len(weight_RS), 1))
    for turn, top in enumerate(TOPS):
        rows, doubted = slice(turn, None, len(TOPS)), partial(residuals, top=top)
        some = many[rows], weights(weight_RS[rows])
        many[rows], _ = least_squares(doubted, *some, bounds=bounds, free=free, relative_decrease=1e-8)
    left = residuals(best[None])[0, :-1]
    spare = max(len(left) - int(free.sum()), 1)
    few = float((seen.score * (1 - seen.score)).mean()) / seen.n_items if seen.n_items else 0.0
    return [best.tolist(), *many.tolist()], math.sqrt(float((left**2).sum()) / spare + few)


def fit_bits(points: Points, weight_RS: np.ndarray, sweep: Sweep | None = None) -> tuple[list[list[float]], float]:
    """Constants of bits = E + A / S^alpha + B / D^beta by Huber(1e-3) of ln bits, as `fit_sigmoid` gives its own."""
    rows = weight_RS
    if sweep is not None:
        fitted = find_centre(sweep)
        theta, _ = fitted.surfaces["log_huber"]
        if len(rows):
            rows = resample(sweep, fitted, weight_RS)["surface_log_huber"]
    else:
        theta, _, _ = fit_centre(points, "log_huber")
        if len(rows):
            objective = make_objective(points, "log_huber")
            rows = points.constants(minimise(objective, np.tile(theta, (len(rows), 1)), weight_RS)[0])
    centre = points.constants(theta[None])[0]
    left = points.loss / Surface.of(centre).loss(points.scale, points.tokens) - 1
    spare = max(len(left) - len(centre), 1)
    return [centre.tolist(), *rows.tolist()], math.sqrt(float((left**2).sum()) / spare)


def fit_task(
    points: Points,
    seen: dict[str, Seen],
    weight_RS: np.ndarray,
    *,
    chance: float | None = None,
    sweep: Sweep | None = None,
    asked: str = "",
) -> TaskLaw:
    """Both steps of one task: `points` holds the bits of each run as its loss, `seen` the pairs of each metric.

    `sweep` holds the same points, with the priors of a sweep's other laws; without it and `chance`, and with equal
    weights, it is the published method.
    """
    bits, bits_sd = fit_bits(points, weight_RS, sweep)
    sigmoids = {m: fit_sigmoid(pairs, weight_RS, points.weight, chance=chance) for m, pairs in seen.items()}
    return TaskLaw(
        bits,
        bits_sd,
        {metric: rows for metric, (rows, _) in sigmoids.items()},
        {metric: sd for metric, (_, sd) in sigmoids.items()},
        n_runs=len(points.loss),
        asked=asked,
    )


def with_benchmarks(laws: Laws, table: Table, folders: Sequence[Path], *, bootstrap: int = 1000, seed: int = 0) -> Laws:
    """The laws of a sweep, and those of every task on which at least nine of its cells were evaluated.

    `folders`: where the runs of `table` lie, by their run_id.

    Raises:
        FitError: cells were asked different items.
    """
    if "run_id" not in table.columns:
        return laws
    table, _ = fit_cells(table, laws.scale, laws.loss)
    tasks, warnings, found = _read(table, folders), [], {}
    for task, cells in sorted(tasks.items()):
        rows, records = np.array(list(cells)), list(cells.values())
        if len(asked := {asked_of(record) for record in records}) > 1:
            raise FitError(
                f"task {task}: cells were asked different items ({len(asked)} sets); evaluate all of them with "
                "one recipe: isoflop eval SWEEP RECIPE"
            )
        if len(rows) < LEAST_CELLS:
            warnings.append(f"task {task}: evaluated on {len(rows)} cells, a law needs {LEAST_CELLS}; left out")
            continue
        scale, tokens = table.numbers(laws.scale)[rows], table.numbers("n_tokens")[rows]
        bits = np.array([record["metrics"][BITS]["value"] for record in records])
        setting = np.unique(np.stack([scale, tokens]), axis=1, return_inverse=True)[1].reshape(-1)
        points = Points(scale, tokens, bits, np.ones(len(rows)), setting)
        sweep = Sweep.of(points, [], laws.scale, (FLOOR_SHARE, FLOOR_SPREAD))
        weight_RS = joint_weights(sweep.points, np.random.default_rng(seed), bootstrap)
        chance, seen = records[0].get("chance"), {}
        for metric in records[0]["metrics"]:
            if metric == BITS:
                continue
            score = np.array([record["metrics"][metric]["value"] for record in records])
            n_items = records[0]["metrics"][metric]["n"]
            if chance is not None and not _rises(bits, score, chance, n_items):
                warnings.append(f"task {task}, {metric}: no cell is clearly above chance ({chance:.3g}); left out")
                continue
            seen[metric] = Seen(bits, score, np.arange(len(rows)), n_items)
        found[task] = fit_task(sweep.points, seen, weight_RS, chance=chance, sweep=sweep, asked=asked.pop())
    return dataclasses.replace(laws, benchmarks=found, warnings=(*laws.warnings, *warnings))


def last_of_each_task(evaluations: Path) -> dict[str, Tree]:
    """The newest record of every task in the `evaluation.jsonl` of a run; none where there is no such file."""
    if not evaluations.is_file():
        return {}
    with undamaged(str(evaluations), DataError, "evaluate that run again with isoflop eval"):
        return {row["task"]: row for row in read_json_lines(evaluations)}


def asked_of(evaluation: Tree) -> str:
    """What was asked in an evaluation: scores of two models compare where this is the same."""
    return f"{evaluation['items_sha256'][:16]}, {evaluation['n_items']} items"


def _rises(bits: np.ndarray, score: np.ndarray, chance: float, n_items: int) -> bool:
    """Whether the quarter of the cells with the fewest bits stands two standard errors above chance, on average."""
    best = score[np.argsort(bits)[: max(2, len(bits) // 4)]].mean()
    return best > chance + 2 * math.sqrt(chance * (1 - chance) / n_items)


def _read(table: Table, folders: Sequence[Path]) -> dict[str, dict[int, Tree]]:
    """By task, the last record of `evaluation.jsonl` in the folder of each row's run; without options, no law."""
    found: dict[str, dict[int, Tree]] = {}
    for row, run_id in enumerate(table.text("run_id").tolist()):
        path = next((p for folder in folders if (p := folder / run_id / "evaluation.jsonl").is_file()), None)
        if path is None:
            continue
        for task, record in last_of_each_task(path).items():
            if BITS in record["metrics"]:
                found.setdefault(task, {})[row] = record
    return found
