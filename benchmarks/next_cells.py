"""What `isoflop next` saves: public sweeps bought run by run, until the interval is nearly that of the whole sweep.

    python benchmarks/next_cells.py [--data ../shared/data/scaling] [--processes 2] [--json FILE]

Each of the seven public sweeps of IsoFLOP curves (benchmarks/forecast.py) begins with its three smallest budgets. The
target is the run at the largest budget that is nearest to the optimum; the whole sweep's interval there is the measure.
Runs are then bought from what is left, their losses unknown until bought, and the laws fitted anew after each
purchase: as `next_cells` says (four at a time, per FLOP; a budget that is not begun yet in threes), by chance (a tenth
of the sweep's FLOPs at a time, three seeds), or budget by budget as a ladder runs. Where too few budgets surround their
optimum for `next_cells`, the next budget is bought whole. Reported: the width over the whole sweep's at the last
purchase within half of its FLOPs, the share of its FLOPs at which it came within 10%, and how often the interval held
the runs near the optimum at the largest budget that were not bought yet. Sweeps of one source share their weight in the
coverage.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import forecast
import numpy as np

from isoflop import Laws, fit, predict
from isoflop.errors import PlanError
from isoflop.scaling.plan.allocate import best_split, check_vertices
from isoflop.scaling.plan.next_cells import NEW_BUDGET, Run, next_cells

NEARLY, HALF = 1.1, 0.5
STEPS = 0.1
"""Share of the whole sweep's FLOPs that chance buys between two fits."""
Buy = Callable[["Market", Laws, list[int]], list[int]]


class Market:
    """A sweep whose runs are for sale, and the run whose loss is wanted."""

    def __init__(self, series: forecast.Series):
        self.series, runs = series, series.runs
        budgets = forecast._budgets(runs["total_flops"])
        self.budgets = [rows for rows in budgets if len(np.unique(runs["n_params"][rows])) >= 3]
        self.rows = np.concatenate(self.budgets)
        off = np.abs(np.log(runs["n_params"] / forecast._optimal_sizes(series, self.budgets)))
        top = self.budgets[-1]
        self.target = top[off[top].argmin()]
        self.near = top[off[top] <= math.log(2)]

    def fit(self, bought: Sequence[int], bootstrap: int) -> Laws:
        keep = np.isin(np.arange(len(self.series.runs["n_params"])), bought)
        return fit(self.series.part(keep), bootstrap=bootstrap)

    def share(self, bought: Sequence[int]) -> float:
        flops = self.series.runs["total_flops"]
        return float(flops[list(bought)].sum() / flops[self.rows].sum())

    def run(self, row: int) -> Run:
        size, tokens, flops = (float(self.series.runs[n][row]) for n in ("n_params", "n_tokens", "total_flops"))
        return Run(flops, size, tokens, flops)


def by_information(market: Market, laws: Laws, bought: list[int]) -> list[int]:
    """What `next_cells` names, of the runs that are left: four at a time, as the command does."""
    try:
        check_vertices(laws)
    except PlanError:
        return by_ladder(market, laws, bought)
    rows: list[list[int]] = []
    for budget in market.budgets:
        left = [row for row in budget if row not in bought]
        size = market.series.runs["n_params"]
        best = best_split(laws, float(market.series.runs["total_flops"][budget].mean())).scale
        if len(left) < len(budget):
            rows += [[row] for row in left if abs(math.log(size[row] / best)) <= math.log(2)]
            continue
        three = {min(left, key=lambda row: abs(math.log(size[row] / best / factor))) for factor in NEW_BUDGET}
        rest = sorted(set(left) - three, key=lambda row: abs(math.log(size[row] / best)))
        while len(np.unique(size[list(three)])) < 3:
            three.add(rest.pop(0))
        rows.append(sorted(three))
    offers = [[market.run(row) for row in offer] for offer in rows]
    target = market.run(market.target)
    found = next_cells(laws, target.scale, target.n_tokens, width=1e-6, offers=offers)
    return [row for offer, three in zip(offers, rows) if offer[0] in found.runs for row in three]


def by_chance(seed: int) -> Buy:
    def buy(market: Market, laws: Laws, bought: list[int]) -> list[int]:
        order = np.random.default_rng(seed).permutation(market.rows)
        left = [int(row) for row in order if row not in bought]
        end = next((n for n in range(1, len(left) + 1) if market.share(left[:n]) > STEPS), len(left))
        return left[:end]

    return buy


def by_ladder(market: Market, laws: Laws, bought: list[int]) -> list[int]:
    return [int(row) for row in next(rows for rows in market.budgets if rows[0] not in bought)]


WAYS: dict[str, Buy] = {"next": by_information, "ladder": by_ladder} | {
    f"chance-{seed}": by_chance(seed) for seed in range(3)
}


def replay(job: tuple[forecast.Series, str, int]) -> dict:
    """One sweep bought one way, until its interval is nearly that of the whole."""
    series, way, bootstrap = job
    market = Market(series)
    wanted = market.run(market.target)
    whole = predict(market.fit(market.rows.tolist(), bootstrap), wanted.scale, wanted.n_tokens).relative_width
    bought = [int(row) for rows in market.budgets[:3] for row in rows]
    states, forecasts = [], []
    while True:
        laws = market.fit(bought, bootstrap)
        said = predict(laws, wanted.scale, wanted.n_tokens)
        states.append({"share": market.share(bought), "ratio": said.relative_width / whole, "runs": len(bought)})
        states[-1] |= {name: said.components[name] for name in ("noise", "constants", "drift")}
        for row in market.near:
            if row not in bought:
                run = market.run(row)
                one, loss = predict(laws, run.scale, run.n_tokens), float(series.runs["loss_nats"][row])
                forecasts.append({"source": series.source, "series": series.name, "inside": one.low <= loss <= one.high,
                                  "error": one.center / loss - 1, "share": states[-1]["share"]})  # fmt: skip
        if states[-1]["ratio"] <= NEARLY or len(bought) == len(market.rows):
            break
        more = WAYS[way](market, laws, bought)
        if not more:
            break
        bought += more
    return {"series": series.name, "source": series.source, "way": way, "whole_width": whole, "states": states,
            "forecasts": forecasts}  # fmt: skip


def summary(found: list[dict]) -> dict:
    """Median over the sweeps; of chance, first the median over its seeds."""
    half = [max((s for s in one["states"] if s["share"] <= HALF), key=lambda s: s["share"]) for one in found]
    reached = [one["states"][-1]["share"] if one["states"][-1]["ratio"] <= NEARLY else math.inf for one in found]
    names = sorted({one["series"] for one in found})

    def median(values: list[float]) -> float:
        by_name = [np.median([v for v, one in zip(values, found) if one["series"] == name]) for name in names]
        return float(np.median(by_name))

    rows = [row for one in found for row in one["forecasts"]]
    weight = forecast.weights(rows)
    return {
        "ratio_at_half": median([state["ratio"] for state in half]),
        "share_when_within_10": median(reached),
        "coverage": float(weight @ np.array([row["inside"] for row in rows])),
        "forecasts": len(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/scaling", type=Path)
    parser.add_argument("--bootstrap", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--json")
    options = parser.parse_args()
    begun = time.perf_counter()
    series = [one for one in forecast.public_series(options.data) if one.budgets]
    jobs = [(one, way, options.bootstrap) for way in options.ways for one in series]
    with ProcessPoolExecutor(options.processes) as pool:
        found = []
        for one in pool.map(replay, jobs):
            found.append(one)
            print(one["way"], one["series"], *(f"{s['share']:.2f}:{s['ratio']:.2f}" for s in one["states"]), flush=True)
    for kind in dict.fromkeys(way.partition("-")[0] for way in options.ways):
        print(kind, summary([one for one in found if one["way"].startswith(kind)]))
    print(f"{time.perf_counter() - begun:.0f} s")
    if options.json:
        Path(options.json).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
