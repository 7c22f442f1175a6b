"""How good forecasts are on other people's runs: fit below a compute, predict the runs beyond it, compare.

    python benchmarks/forecast.py [--data ../shared/data/scaling] [--processes 2] [--write] [--rows FILE]

Prints the table of docs/forecast.md, the row of an earlier commit beside it (docs/studies/forecast/before.json), and
the project's own targets refitted. With --write it draws docs/figures/forecast.png and writes what intervals take from
experience, learned from all series, to isoflop/scaling/plan/drift.json; the table itself uses, for every source, what
was learned without it. Under an older isoflop it prints the plain row.

Every split of every public series: `isoflop.fit` on the runs up to C0, `isoflop.predict` for each run beyond.
The rules: budgets are runs of one compute (within 1.1x), kept with three sizes; C0 goes from the third kept budget to
the last but one, tests are the runs with C > 1.5 C0 within a factor 2 of the optimal size (a line through the parabola
bottoms of all runs, over ln C). Tables without budgets: at least 8 runs, 3 sizes, 3 token counts; C0 rises by 1.6x, at
most 8 of them; tests are all runs with C > 1.7 C0. In a cell sources weigh equally, then series, then runs.
"""

import argparse
import csv
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop import fit, predict
from isoflop.recipe import write_json

if TYPE_CHECKING:
    from isoflop.scaling.plan.predict import Experience
else:
    try:
        from isoflop.scaling.plan.predict import Experience
    except ImportError:  # before there was any: the row of an earlier commit
        Experience = None

BINS = {"3x": (1.7, 5.5), "10x": (5.5, 17.0), "30x": (17.0, 55.0), "100x": (55.0, 400.0)}
"""C / C0 from and to."""
Runs = dict[str, np.ndarray]
Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
OWN = (
    *("demo-first-seed0", "demo-first-seed1", "demo-seed0-9c5d3f0", "demo-seed0-d86ed22", "demo-seed0-d8f51e2"),
    *("demo-seed1-095c9c9", *(f"demo-seed{seed}-cc80d37" for seed in range(4))),
    *("h100-first", "h100-second", "h100/score.json", "h100/score-40x.json"),
)
"""The project's targets under docs/studies; one more lies in the shared data."""
LEVEL_Z = 1.6448536269514722  # of a 90% interval
GRID = [0.5 + 0.05 * i for i in range(15)], [0.001 * i for i in range(1, 9)]
"""Factors on the constants' spread, and drifts per e-fold, among which experience chooses."""


@dataclass(frozen=True)
class Series:
    """One set of comparable runs: n_params, n_tokens, total_flops, loss_nats."""

    name: str
    source: str
    budgets: bool
    runs: Runs

    def part(self, keep: np.ndarray) -> list[dict[str, float]]:
        names = [name for name in self.runs if self.budgets or name != "total_flops"]
        return [{name: float(self.runs[name][i]) for name in names} for i in np.flatnonzero(keep)]


def public_series(folder: Path) -> list[Series]:
    """The shared series: seven sweeps of IsoFLOP curves, four tables without budgets."""
    found = [
        _series("chinchilla", "chinchilla", folder / "chinchilla-epoch/isoflop.csv", flops="flops_bin"),
        *(
            _series(f"marin-{corpus}", "marin", folder / "marin-isoflop/runs.csv", flops="flops_logged",
                    where=lambda row, corpus=corpus: row["dataset"] == corpus and row["kind"] == "isoflop")
            for corpus in ("nemotron", "comma")
        ),
        *(
            _series(f"porian-{experiment[0]}", "porian", folder / "porian-refinedweb/isoflop_points.csv", flops="flops",
                    where=lambda row, experiment=experiment: row["experiment"] == experiment)
            for experiment in ("2_count_last_layer", "3_correct_warmup", "4_cosine_decay_to_D",
                               "5_tuned_optimizer_constant_lr")
        ),
        _series("chinchilla-all", "chinchilla", folder / "chinchilla-epoch/runs.csv", drop=4),
        *(
            _series(f"gadre-{corpus}", "gadre", folder / "gadre-overtraining/runs.csv", loss="loss_c4_val",
                    where=lambda row, corpus=corpus: row["dataset"] == corpus)
            for corpus in ("c4", "redpajama")
        ),
        _series("datablations", "datablations", folder / "datablations/runs.csv",
                where=lambda row: row["in_published_fit"] == "1" and float(row["epochs"]) == 1),
    ]  # fmt: skip
    return found


def _series(
    name: str,
    source: str,
    path: Path,
    *,
    flops: str = "",
    loss: str = "loss",
    where: Callable[[dict[str, str]], bool] = lambda row: True,
    drop: int = 0,
) -> Series:
    """Rows of a CSV that `where` keeps, less the `drop` highest losses; C = 6 N D without a column `flops`."""
    with path.open(encoding="utf-8") as lines:
        rows = sorted((row for row in csv.DictReader(lines) if where(row)), key=lambda row: float(row[loss]))
    rows = rows[: len(rows) - drop]
    column = {ours: np.array([float(row[theirs]) for row in rows])
              for ours, theirs in (("n_params", "params"), ("n_tokens", "tokens"), ("loss_nats", loss))}  # fmt: skip
    compute = [float(row[flops]) for row in rows] if flops else 6 * column["n_params"] * column["n_tokens"]
    return Series(name, source, bool(flops), column | {"total_flops": np.array(compute)})


def splits(series: Series) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
    """C0, the runs to fit, the runs to predict."""
    flops, size = series.runs["total_flops"], series.runs["n_params"]
    if series.budgets:
        budgets = [rows for rows in _budgets(flops) if len(np.unique(size[rows])) >= 3]
        near = np.abs(np.log(size / _optimal_sizes(series, budgets))) <= np.log(2)
        tops = [float(flops[rows].max()) for rows in budgets[2:-1]]
        rules = [(top, flops <= top, near & (flops > 1.5 * top)) for top in tops]
    else:
        steps = np.arange(int(np.log(flops.max() / flops.min()) / np.log(1.6)) + 1)
        tops = [float(flops.min() * 1.6**step) for step in steps]
        rules = [(top, flops <= top, flops > 1.7 * top) for top in tops]
        rules = [rule for rule in rules if _carries_a_law(series, rule[1]) and rule[2].any()]
    yield from rules if series.budgets else rules[:8]


def _carries_a_law(series: Series, keep: np.ndarray) -> bool:
    sizes, tokens = (len(np.unique(series.runs[name][keep])) for name in ("n_params", "n_tokens"))
    return int(keep.sum()) >= 8 and sizes >= 3 and tokens >= 3


def _budgets(flops: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(flops, kind="stable")
    return np.split(order, np.flatnonzero(flops[order][1:] > 1.1 * flops[order][:-1]) + 1)


def _optimal_sizes(series: Series, budgets: list[np.ndarray]) -> np.ndarray:
    """The best size at every run's compute, by the trend of all runs."""
    bottoms = []
    for rows in budgets:
        x = np.log(series.runs["n_params"][rows])
        bend, slope, _ = np.polyfit(x, series.runs["loss_nats"][rows], 2)
        place = -slope / (2 * bend)
        if bend > 0 and x.min() <= place <= x.max():
            bottoms.append((np.log(series.runs["total_flops"][rows]).mean(), place))
    x, place = np.array(bottoms).T
    line = np.polyfit(x, place, 1)
    return np.exp(np.polyval(line, np.log(series.runs["total_flops"])))


def forecast(job: tuple[Series, float, np.ndarray, np.ndarray, int]) -> list[Row]:
    """Every run beyond one C0, predicted from the runs up to it."""
    series, top, keep, test, bootstrap = job
    known = {"series": series.name, "source": series.source, "budgets": series.budgets, "C0": top}
    try:
        laws = fit(series.part(keep), bootstrap=bootstrap)
    except ValueError as error:  # what isoflop refuses
        return [known | {"refused": str(error)}]
    rows = []
    for i in np.flatnonzero(test):
        run = {name: float(values[i]) for name, values in series.runs.items()}
        said = asdict(predict(laws, run["n_params"], run["n_tokens"]))
        rows.append(known | run | said | {"distance": run["total_flops"] / top, "measured": run["loss_nats"]})
    return rows


def backtest(series: list[Series], *, bootstrap: int, processes: int) -> list[Row]:
    """All splits of all series."""
    jobs = [(one, *split, bootstrap) for one in series for split in splits(one)]
    with ProcessPoolExecutor(processes) as pool:
        return [row for rows in pool.map(forecast, jobs) for row in rows]


def own_targets(data: Path, bootstrap: int) -> list[Row]:
    """The project's own studies refitted, after the fact, each with its recorded prediction."""
    rows = []
    for place in (*(ROOT / "docs/studies" / name for name in OWN), data / "isoflop-demo-9f270cf"):
        folder, score = (place.parent, place) if place.suffix else (place, place / "score.json")
        recorded = json.loads(score.read_text())
        lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
        measured = recorded["measured_bits_per_byte"]
        target = next(one for one in lines if one["kind"] == "target" and one["bits_per_byte"] == measured)
        said = asdict(
            predict(
                fit(folder / "records.jsonl", bootstrap=bootstrap, hyper=False),
                target["flops_per_token"],
                target["n_tokens"],
            )
        )
        name = folder.name + ("-40x" if "40x" in score.name else "")
        known = {"series": name, "source": "isoflop", "budgets": True, "C0": 0.0, "distance": recorded["ratio"]}
        rows.append(known | said | {"measured": measured, "recorded": recorded})
    return rows


def learn(rows: list[Row]) -> "Experience":
    """The experience under which the measured losses are likeliest, every distance weighing alike."""

    def surprise(experience: "Experience") -> float:
        """Negative log-likelihood of the misses under the stated normal laws, a constant aside."""
        found = []
        for part in by_distance(rows).values():
            sd = np.array([math.hypot(*experience.causes(row["components"]).values()) for row in part])
            miss = np.log([row["center"] / row["measured"] for row in part])
            found.append(weights(part) @ (np.log(sd) + miss**2 / (2 * sd**2)))
        return float(np.mean(found))

    return min((Experience(drift, factor) for factor, drift in itertools.product(*GRID)), key=surprise)


def with_experience(rows: list[Row], experience: "Experience") -> list[Row]:
    """The same forecasts with the intervals that this experience gives."""
    found = []
    for row in rows:
        factor = math.exp(LEVEL_Z * math.hypot(*experience.causes(row["components"]).values()))
        found.append(row | {"low": row["center"] / factor, "high": row["center"] * factor})
    return found


def leaving_one_source_out(rows: list[Row], others: list[Row]) -> list[Row]:
    """Intervals of each source by what was learned from all others; refused splits stay."""
    found = [row for row in rows if "refused" in row]
    fine = [row for row in rows if "center" in row]
    for source in sorted({row["source"] for row in fine}):
        experience = learn([row for row in fine + others if row["source"] != source])
        found += with_experience([row for row in fine if row["source"] == source], experience)
    return found


def by_distance(rows: list[Row]) -> dict[str, list[Row]]:
    """Forecasts by bin."""
    found = {name: [r for r in rows if "center" in r and a <= r["distance"] < b] for name, (a, b) in BINS.items()}
    return {name: part for name, part in found.items() if part}


def cells(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Median |error|, coverage, median width and median error per distance, in percent."""
    found = {}
    for name, part in by_distance(rows).items():
        weight = weights(part)
        error, width = (np.array([f(row) for row in part]) for f in (_error, _width))
        inside = np.array([row["low"] <= row["measured"] <= row["high"] for row in part])
        found[name] = {
            "median_error": 100 * weighted_median(np.abs(error), weight),
            "coverage": 100 * float(weight @ inside),
            "width": 100 * weighted_median(width, weight),
            "bias": 100 * weighted_median(error, weight),
            "splits": len({(row["series"], row["C0"]) for row in part}),
        }
    return found


def weights(rows: list[Row]) -> np.ndarray:
    """Of each run: sources weigh equally, then the series of a source, then the runs of a series."""
    of: dict[str, dict[str, int]] = {}
    for row in rows:
        series = of.setdefault(row["source"], {})
        series[row["series"]] = series.get(row["series"], 0) + 1
    return np.array([1 / len(of) / len(of[r["source"]]) / of[r["source"]][r["series"]] for r in rows])


def weighted_median(values: np.ndarray, weight: np.ndarray) -> float:
    """The smallest value that half of the weight does not exceed."""
    order = np.argsort(values)
    return float(values[order][np.searchsorted(np.cumsum(weight[order]), 0.5 * weight.sum())])


def _error(row: Row) -> float:
    return row["center"] / row["measured"] - 1


def _width(row: Row) -> float:
    return (row["high"] - row["low"]) / row["center"]


def table(rows: list[Row], title: str) -> dict[str, Any]:
    """Print the rows of docs/forecast.md; returns the cells of curves and of other tables."""
    found = {}
    for kind, budgets in (("IsoFLOP curves", True), ("other tables", False)):
        part = [row for row in rows if row["budgets"] == budgets]
        refused = sum("refused" in row for row in part)
        found[kind] = {"cells": cells(part), "refused_splits": refused}
        print_cells(f"{kind}, {title}", found[kind])
    return found


def print_cells(title: str, found: dict[str, Any]) -> None:
    """One row of docs/forecast.md."""
    cells = found["cells"]
    shown = [
        "{median_error:.2f} / {coverage:.0f} / {width:.1f}".format(**cells[n]) if n in cells else "-" for n in BINS
    ]
    print(f"| {title} | {' | '.join(shown)} | {found['refused_splits']} |")


def table_of_own(rows: list[Row]) -> None:
    """Print the project's own targets, recorded and refitted."""
    print("\n| target | times the sweep | recorded | refitted | interval | inside |\n|---|---|---|---|---|---|")
    for row in rows:
        inside = "yes" if row["low"] <= row["measured"] <= row["high"] else "no"
        print(
            f"| {row['series']} | {row['distance']:.3g} | {row['recorded']['relative_error']:+.2%} | "
            f"{_error(row):+.2%} | {row['low']:.3f} to {row['high']:.3f}, measured {row['measured']:.3f} | {inside} |"
        )
    errors = np.array([_error(row) for row in rows])
    count = sum(row["low"] <= row["measured"] <= row["high"] for row in rows)
    print(f"\nmean error {np.abs(errors).mean():.2%}, signed {errors.mean():+.2%}, {count} of {len(rows)} inside")


def figure(rows: list[Row], path: Path) -> None:
    """Predicted over measured with its interval, one bar per forecast, by distance."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(10, 5.6), layout="constrained")
    panels = drawn.subplots(2, 1, sharex=True)
    for axes, kind, budgets in zip(panels, ("IsoFLOP curves", "other tables"), (True, False)):
        part = [row for row in rows if "center" in row and row["budgets"] == budgets]
        for number, source in enumerate(sorted({row["source"] for row in part})):
            of = [row for row in part if row["source"] == source]
            x = np.array([row["distance"] for row in of])
            y, low, high = (
                100 * np.array([r[key] / r["measured"] - 1 for r in of]) for key in ("center", "low", "high")
            )
            axes.vlines(x, low, high, color=f"C{number}", alpha=0.15, linewidth=0.8)
            axes.plot(x, y, ".", color=f"C{number}", markersize=3, label=source)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(xscale="log", ylim=(-20, 20), ylabel="predicted over measured, %", title=kind)
        axes.legend(loc="upper left", fontsize=8)
    panels[-1].set_xlabel("compute of the run over the largest compute fitted")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=ROOT.parent / "shared/data/scaling", type=Path)
    parser.add_argument("--bootstrap", type=int, default=300)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="the figure, the results and what was learned")
    parser.add_argument("--rows", type=Path, help="also keep every forecast in this JSON file")
    options = parser.parse_args()
    begun = time.perf_counter()
    before = ROOT / "docs/studies/forecast/before.json"
    rows = backtest(public_series(options.data), bootstrap=options.bootstrap, processes=options.processes)
    print("| forecast | " + " | ".join(BINS) + " | refused splits |\n|---|---|---|---|---|---|")
    if Experience is None:
        write_json(before, {"rows": table(rows, "this version")})
        return
    known = json.loads(before.read_text())
    for kind, part in known["rows"].items():
        print_cells(f"{kind}, {known['commit']}", part)
    own = own_targets(options.data, options.bootstrap)
    curves, tables = ([row for row in rows if row["budgets"] == budgets] for budgets in (True, False))
    judged = leaving_one_source_out(curves, own) + leaving_one_source_out(tables, [])
    found = table(judged, "now")
    learned = {
        kind: asdict(learn([row for row in part if "center" in row]))
        for kind, part in (("curves", curves + own), ("tables", tables))
    }
    print(f"learned from all: {learned}")
    table_of_own(with_experience(own, Experience(**learned["curves"])))
    print(f"{time.perf_counter() - begun:.0f} s")
    if options.write:
        write_json(ROOT / "isoflop/scaling/plan/drift.json", learned | {"origin": "benchmarks/forecast.py --write"})
        write_json(ROOT / "docs/studies/forecast/now.json", {"rows": found, "learned": learned})
        figure(judged, ROOT / "docs/figures/forecast.png")
    if options.rows:
        write_json(options.rows, judged + own)


if __name__ == "__main__":
    main()
