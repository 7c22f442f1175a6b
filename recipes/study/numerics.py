"""The numerics study: one small ladder in several number formats, the laws of each, and what each is worth in compute.

    python recipes/study/numerics.py run [VARIANT ...] --tokens DIR --out DIR      what is finished is skipped
    python recipes/study/numerics.py report --out DIR                     table on stdout, study.json a picture there

Each variant is numerics.toml with a few values changed; cells, data, batches and rates are the same in all. A variant
is a sweep of its own in OUT/VARIANT, so it resumes, and `isoflop fit`, `plan`, `compare` and `report` read it.
"""

import argparse
import json
import logging
import math
import statistics
import sys
from pathlib import Path
from typing import Any

from isoflop.errors import IsoflopError

LADDER = Path(__file__).with_suffix(".toml")
PHOTONIC = ('numerics.rules=[{modules = "blocks.*", format = "photonic"}]',)


def bits(n: int) -> tuple[str, ...]:
    """All three converters of the core."""
    return tuple(f"numerics.photonic.core.{name}_bits={n}" for name in ("input", "weight", "adc"))


VARIANTS: dict[str, tuple[str, ...]] = {
    "float32": (),
    "photonic-8bit": PHOTONIC,
    "photonic-4bit": (*PHOTONIC, *bits(4)),
    "fp8": ('numerics.rules=[{modules = "blocks.*", format = "fp8_block"}]',),
    "photonic-6bit": (*PHOTONIC, *bits(6)),
    "photonic-1uw": (*PHOTONIC, "numerics.photonic.core.power_mw=0.001"),
    "bf16": ('train.precision="bfloat16"',),
    "photonic-5bit": (*PHOTONIC, *bits(5)),
    "photonic-10uw": (*PHOTONIC, "numerics.photonic.core.power_mw=0.01"),
}
"""In the order in which they run; float32 is what the others are compared with."""


def run(out: Path, variants: list[str], overrides: list[str], workers: int) -> None:
    """Sweep what is missing, one variant after the other."""
    from isoflop.recipe import load_recipe, write_recipe
    from isoflop.scaling.sweep.ladder import LadderRecipe, ladder_on_tokens, plan_ladder
    from isoflop.scaling.sweep.run import run_sweep

    for variant in variants:
        recipe = load_recipe(LADDER, LadderRecipe, [*overrides, *VARIANTS[variant]])
        recipe, data_sha256 = ladder_on_tokens(recipe)
        planned = plan_ladder(recipe, data_sha256=data_sha256)
        write_recipe(out / variant / "ladder.toml", recipe, header=f"numerics study, {variant}")
        records = run_sweep(list(planned.cells), out / variant, study=variant, workers=workers, threads=1)
        logging.info("%s: %d of %d cells", variant, len(records), len(planned.cells))


def report(out: Path, level: float, same_held_out: bool) -> dict[str, Any]:
    """Laws of every finished variant, paired loss ratios, and the compute multiplier over float32."""
    from isoflop.recipe import write_json
    from isoflop.scaling.fit.joint import fit
    from isoflop.scaling.plan.compare import compare
    from isoflop.scaling.sweep.records import read_records

    found: dict[str, Any] = {}
    laws: dict[str, Any] = {}
    base: dict[tuple[Any, ...], float] = {}
    for variant in VARIANTS:
        path = out / variant / "records.jsonl"
        if not path.is_file():
            continue
        records = [record for record in read_records(path) if record.status == "finished"]
        loss = {(r.d_model, r.n_layers, r.n_tokens, r.seed): float(r.bits_per_byte or math.nan) for r in records}
        base = loss if variant == "float32" else base
        ratios = [loss[cell] / base[cell] - 1 for cell in loss if cell in base]
        row = {
            "numerics": records[0].numerics,
            "n_cells": len(records),
            "wall_s": sum(r.wall_s or 0.0 for r in records),
            "commit": records[0].commit,
            "device": records[0].device,
            "bits_per_byte": {f"{d}x{n} {tokens}": value for (d, n, tokens, _), value in sorted(loss.items())},
        }
        if ratios:
            row |= {"excess_loss_mean": statistics.fmean(ratios)}
            row |= {"excess_loss_low": min(ratios), "excess_loss_high": max(ratios), "excess_loss_by_cell": ratios}
        try:
            laws[variant] = fit(records, seed=0)
            laws[variant].write(out / variant / "laws.json")
            row["largest_budget_flops"] = budget = laws[variant].largest_budget_flops
            if variant != "float32" and "float32" in laws:
                sides = (laws["float32"], laws[variant])
                verdict = compare(*sides, budget_flops=budget, level=level, same_held_out=same_held_out).tree()
                row["multiplier"] = {key: verdict["multiplier"][key] for key in ("center", "low", "high", "by_law")}
                row["verdict"] = verdict["verdict"]
                write_json(out / variant / "compare.json", verdict)
        except IsoflopError as error:
            row["no_law"] = str(error)
        found[variant] = row
    write_json(out / "study.json", found)
    if any(row.get("multiplier") for row in found.values()):
        draw(out / "numerics.png", found)
    return found


def draw(path: Path, found: dict[str, Any]) -> None:
    """Excess loss of the cells (dots) and its mean, and the compute multiplier with its interval, format by format."""
    from isoflop.pages.plot import BLUE, INK, VERMILION, light_grid, new_figure, style

    rows = {name: row for name, row in found.items() if row.get("multiplier")}
    names = sorted(rows, key=lambda name: -rows[name]["multiplier"]["center"])
    with style():
        figure = new_figure(4.2)
        left, right = figure.subplots(1, 2, sharey=True)
        for place, name in enumerate(reversed(names)):
            losses = [100 * value for value in rows[name]["excess_loss_by_cell"]]
            left.plot(losses, [place] * len(losses), "o", color=BLUE, markersize=4, alpha=0.4)
            left.plot([100 * rows[name]["excess_loss_mean"]] * 2, [place - 0.3, place + 0.3], color=VERMILION)
            m = rows[name]["multiplier"]
            right.plot([m["low"], m["high"]], [place, place], color=BLUE, linewidth=3)
            right.plot([m["center"]], [place], "o", color=VERMILION, markersize=6)
        left.set_yticks(range(len(names)), labels=list(reversed(names)))
        left.set_xscale("symlog", linthresh=1.0)
        left.set_xlabel("loss above float32's, equal cells (%)")
        right.set_xscale("log")
        right.axvline(1.0, color=INK, linewidth=1)
        right.set_xlabel("compute multiplier over float32 (90%)")
        for axes in (left, right):
            light_grid(axes, "x")
        figure.savefig(path, dpi=150)


def show(found: dict[str, Any]) -> None:
    """The table of docs/numerics-study.md."""
    print("| format | cells | excess loss, mean (range) | compute multiplier over float32 (90%) |")
    print("|---|---|---|---|")
    for variant, row in found.items():
        excess = "no float32 cells to compare with"
        if "excess_loss_mean" in row:
            span = f"{row['excess_loss_low']:+.2%} to {row['excess_loss_high']:+.2%}"
            excess = f"{row['excess_loss_mean']:+.2%} ({span})"
        m = row.get("multiplier")
        worth = f"{m['center']:.2f} ({m['low']:.2f} to {m['high']:.2f})" if m else row.get("no_law", "1")
        print(f"| {variant} | {row['n_cells']} | {excess} | {worth} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "report"))
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=f"default: {' '.join(VARIANTS)}")
    parser.add_argument("--tokens", type=Path, default=Path("runs/tokens"), help="tokens folder")
    parser.add_argument("--out", type=Path, default=Path("runs/numerics"))
    parser.add_argument("--workers", type=int, default=1, help="cells at a time, one thread each")
    parser.add_argument("--level", type=float, default=0.9, help="of the intervals")
    parser.add_argument(
        "--same-held-out", action="store_true", help="as that of isoflop compare: older records need it"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="SECTION.KEY=VALUE", help="overrides of the ladder")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.action == "run":
        overrides = [f"data.tokens={json.dumps(str(options.tokens))}", *options.set]
        run(options.out, options.variants or list(VARIANTS), overrides, options.workers)
    show(report(options.out, options.level, options.same_held_out))


if __name__ == "__main__":
    try:
        main()
    except IsoflopError as error:
        sys.exit(f"error: {error}")
