"""How long 1000 bootstrap resamples of the three-term surface take, and whether they end at their minima.

    python benchmarks/bootstrap_fit.py [TABLE.csv] [--resamples 1000] [--drop 5] [--json FILE]

Without a table, 240 runs are made up from known constants with 1% noise (the size of the Chinchilla set recovered by
Epoch AI); with one, its columns params, tokens and loss are read. Reported: seconds for all four objectives and for
log_huber alone, the spread of the exponents, and for 20 resamples the excess of the objective over the best of a whole
grid of starts.
"""

import argparse
import os
import platform
import time

import numpy as np
from isoflop.scaling.fit.optimise import minimise

from isoflop.recipe import write_json
from isoflop.scaling.fit.parametric import (
    Surface,
    draw_settings,
    fit_centre,
    fit_surface,
    make_objective,
    start_grid,
    surface_points,
)
from isoflop.scaling.fit.table import Table, load_table

CHECKED = 20


def made_up_runs() -> Table:
    generator = np.random.default_rng(0)
    law = Surface(1.8172, 477.83, 2143.4, 0.34731, 0.36717)  # Besiroglu's objective's minimum (arXiv 2404.10102)
    flops = 10 ** generator.uniform(18.5, 22, 240)
    params = (flops / 6) ** 0.5 * 0.15 * 10 ** generator.normal(0, 0.35, 240)
    tokens = flops / (6 * params)
    loss = law.loss(params, tokens) * np.exp(0.01 * generator.normal(size=240))
    return Table({"n_params": params, "n_tokens": tokens, "loss_nats": loss})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--drop", type=int, default=0, help="rows of highest loss to leave out")
    parser.add_argument("--json")
    options = parser.parse_args()
    mapping = "n_params=params,n_tokens=tokens,loss_nats=loss"
    table = (
        load_table(options.table, mapping=mapping, drop_highest_loss=options.drop) if options.table else made_up_runs()
    )

    start = time.perf_counter()
    fits = fit_surface(table, bootstrap=options.resamples)["fits"]
    all_s = time.perf_counter() - start
    start = time.perf_counter()
    fit_surface(table, bootstrap=options.resamples, objectives=("log_huber",))
    one_s = time.perf_counter() - start

    points = surface_points(table)
    objective = make_objective(points, "log_huber")
    theta, _, _ = fit_centre(points, "log_huber", objective)
    draws_RS = draw_settings(points.setting, CHECKED, np.random.default_rng(1))
    _, value_R, _ = minimise(objective, np.tile(theta, (CHECKED, 1)), draws_RS)
    best_R = [minimise(objective, start_grid(points), draw_S[None])[1].min() for draw_S in draws_RS]
    excess = float((value_R / np.array(best_R) - 1).max())

    found = {
        "rows": table.n_rows,
        "resamples": options.resamples,
        "four_objectives_s": all_s,
        "log_huber_s": one_s,
        "bootstrap_sd": fits["log_huber"]["bootstrap_sd"],
        "worst_relative_excess_of_20_resamples": excess,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
    }
    for name, value in found.items():
        print(f"{name:40s} {value}")
    if options.json:
        write_json(options.json, found)


if __name__ == "__main__":
    main()
