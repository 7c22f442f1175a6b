"""How good forecasts are on other people's runs: fit below a compute, predict the runs beyond it, compare.

    python benchmarks/forecast.py [--data ../shared/data/scaling] [--processes 2] [--json FILE]

Every split of every public series: `isoflop.fit` on the runs up to C0, `isoflop.predict` for each run beyond.
The rules: budgets are runs of one compute (within 1.1x), kept with three sizes; C0 goes from the third kept budget to
the last but one, tests are the runs with C > 1.5 C0 within a factor 2 of the optimal size (a line through the parabola
bottoms of all runs, over ln C). Tables without budgets: at least 8 runs, 3 sizes, 3 token counts; C0 rises by 1.6x, at
most 8 of them, evenly; tests are all runs with C > 1.7 C0. In a cell sources weigh equally, then series, then runs.
"""

import argparse
import csv
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isoflop import fit, predict

BINS = {"3x": (1.7, 5.5), "10x": (5.5, 17.0), "30x": (17.0, 55.0), "100x": (55.0, 400.0)}
"""C / C0 from and to."""
Runs = dict[str, np.ndarray]


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
        if len(rules) > 8:
            rules = [rules[i] for i in np.linspace(0, len(rules) - 1, 8).round().astype(int)]
    yield from rules


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


def forecast(job: tuple[Series, float, np.ndarray, np.ndarray, int]) -> list[dict]:
    """Every run beyond one C0, predicted from the runs up to it."""
    series, top, keep, test, bootstrap = job
    known = {"series": series.name, "source": series.source, "budgets": series.budgets, "C0": top}
    try:
        laws = fit(series.part(keep), bootstrap=bootstrap)
    except Exception as error:
        return [known | {"refused": str(error), "n_tests": int(test.sum())}]
    rows = []
    for i in np.flatnonzero(test):
        run = {name: float(values[i]) for name, values in series.runs.items()}
        said = predict(laws, run["n_params"], run["n_tokens"])
        rows.append(
            known
            | {"distance": run["total_flops"] / top, "measured": run["loss_nats"], "n_params": run["n_params"]}
            | {"center": said.center, "low": said.low, "high": said.high, "by_law": said.by_law}
            | {"components": said.components, "noise": laws.noise_sd, "interval": said.by_law_interval}
            | {"rehearsals": [(r.extrapolation_factor, r.measured, r.by_law, r.n_cells) for r in laws.rehearsals]}
        )
    return rows


def backtest(series: list[Series], *, bootstrap: int = 300, processes: int = 1) -> list[dict]:
    jobs = [(one, *split, bootstrap) for one in series for split in splits(one)]
    if processes == 1:
        return [row for job in jobs for row in forecast(job)]
    with ProcessPoolExecutor(processes) as pool:
        return [row for rows in pool.map(forecast, jobs) for row in rows]


def cells(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Median |error|, coverage and median width per distance, in percent."""
    found = {}
    for name, (low, high) in BINS.items():
        part = [row for row in rows if "center" in row and low <= row["distance"] < high]
        if not part:
            continue
        weight = weights(part)
        error, width = (np.array([f(row) for row in part]) for f in (_error, _width))
        inside = np.array([row["low"] <= row["measured"] <= row["high"] for row in part])
        found[name] = {
            "median_error": 100 * weighted_median(np.abs(error), weight),
            "coverage": 100 * float(weight @ inside),
            "width": 100 * weighted_median(width, weight),
            "bias": 100 * weighted_median(error, weight),
            "n": len(part),
            "splits": len({(row["series"], row["C0"]) for row in part}),
        }
    return found


def weights(rows: list[dict]) -> np.ndarray:
    """Of each run: sources weigh equally, then the series of a source, then the runs of a series."""
    of = {}
    for row in rows:
        of.setdefault(row["source"], {}).setdefault(row["series"], []).append(row)
    return np.array([1 / len(of) / len(of[r["source"]]) / len(of[r["source"]][r["series"]]) for r in rows])


def weighted_median(values: np.ndarray, weight: np.ndarray) -> float:
    order = np.argsort(values)
    return float(values[order][np.searchsorted(np.cumsum(weight[order]), 0.5 * weight.sum())])


def _error(row: dict) -> float:
    return row["center"] / row["measured"] - 1


def _width(row: dict) -> float:
    return (row["high"] - row["low"]) / row["center"]


def show(rows: list[dict]) -> None:
    for budgets in (True, False):
        part = [row for row in rows if row["budgets"] == budgets]
        refused = [(row["series"], row["refused"]) for row in part if "refused" in row]
        print("IsoFLOP" if budgets else "tables", "refused", len(refused), refused[:2])
        for name, cell in cells(part).items():
            print(f"  {name:5}", "  ".join(f"{key} {value:.2f}" for key, value in cell.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/scaling", type=Path)
    parser.add_argument("--bootstrap", type=int, default=300)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json")
    options = parser.parse_args()
    begun = time.perf_counter()
    rows = backtest(public_series(options.data), bootstrap=options.bootstrap, processes=options.processes)
    show(rows)
    print(f"{time.perf_counter() - begun:.0f} s")
    if options.json:
        Path(options.json).write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
