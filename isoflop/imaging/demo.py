"""Seeing through a slab on this machine in minutes: measure, learn, look, and a page at the end.

A restart goes on where the last call stopped: the demo is a sweep of the preset, and finished runs are kept.
"""

import dataclasses
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from isoflop.errors import RecipeError
from isoflop.imaging.figure import KINDS
from isoflop.imaging.report import sort_records, write_report
from isoflop.imaging.sweep import ImagingSweep, run_sweep
from isoflop.recipe import load_recipe

PRESET_MINUTES = 4.0
"""What the preset takes on 2 cores (measured, docs/imaging.md)."""


def run_demo(
    out: Path,
    *,
    minutes: float,
    seed: int,
    on_stage: Callable[[str, float, float], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run or resume the demo in `out`; leaves report.html, records.jsonl, figures and the runs.

    Raises: RecipeError for a time that is too short, KeyboardInterrupt when stopped, with what is finished kept.
    """
    if not 0.25 <= minutes <= 600:
        raise RecipeError(f"--minutes {minutes:g} must be in 0.25 to 600; 4 is the preset's own time on 2 cores")
    with resources.as_file(resources.files("isoflop") / "presets") as presets:
        recipe = load_recipe(presets / "imaging_demo.toml", ImagingSweep)
    samples = max(recipe.train.batch_samples, round(recipe.train.n_samples * minutes / PRESET_MINUTES))
    recipe = dataclasses.replace(
        recipe,
        medium=dataclasses.replace(recipe.medium, seed=seed),
        train=dataclasses.replace(recipe.train, n_samples=samples, seed=seed),
    )
    records = run_sweep(recipe, out, on_stage=on_stage, should_stop=should_stop)
    by_crop, by_photons, _ = sort_records(records)
    rows = [
        {
            "camera_px": r["camera_px"],
            "photons": r["photons"] or "no noise",
            "objects": KINDS[kind],
            "network": s["pcc"],
            "ridge": r["ridge"][kind]["pcc"],
            "mean_image": r["mean_image_pcc"][kind],
            "other_slab": r["other_medium_pcc"][kind],
        }
        for r in (*by_crop, *(r for r in by_photons if r not in by_crop))
        for kind, s in r["scores"].items()
    ]
    return {"report": str(write_report(out)), "rows": rows}
