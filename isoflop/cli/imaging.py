"""The commands that look through a scattering slab: isoflop imaging train, evaluate, sweep, report, demo."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from isoflop.cli.arguments import Json, Out, Overrides, Recipe, load_recipe
from isoflop.cli.console import Bar, flat, print_table, report_found, stop_on_signal
from isoflop.recipe import Seed


def train(recipe: Recipe, /, *overrides: Overrides, out: Out = Path("runs/imaging-train"), json: Json = None) -> None:
    """Slab, camera, objects, network -> a trained run, scored beside ridge and mean image; resumes by itself."""
    from isoflop.imaging.config import ImagingRecipe
    from isoflop.imaging.reconstruct import run_imaging
    from isoflop.run import only_one, require_run_folder

    loaded = load_recipe(recipe, ImagingRecipe, overrides)
    require_run_folder(out)
    with Bar("sample") as bar, stop_on_signal() as stop, only_one(out):
        found = run_imaging(loaded, out, on_stage=bar.stage, on_progress=bar.training, should_stop=stop)
    if found["status"] == "interrupted":
        raise KeyboardInterrupt
    report_found(found, json, f"run in {out}", list(flat(found, depth=3)))


def evaluate(
    run: Annotated[Path, Parameter(metavar="RUN", help="folder of imaging train")],
    /,
    *overrides: Overrides,
    json: Json = None,
) -> None:
    """A trained run under other conditions, for example camera.photons=1 or medium.seed=1 -> scores."""
    from isoflop.imaging.reconstruct import evaluate as score

    found = score(run, overrides)
    report_found(found, json, f"clipped pixels: {found['clipped_share']:.3%}", [])
    print_table([{key: row.get(key, "-") for key in found["scores"][0]} for row in found["scores"]])


def sweep(
    recipe: Recipe,
    /,
    *overrides: Overrides,
    dry_run: Annotated[bool, Parameter(help="list the cells, run nothing")] = False,
    out: Out = Path("runs/imaging"),
    json: Json = None,
) -> None:
    """Crops, photons, pairs, networks -> one record per run and a page; runs what is missing."""
    from isoflop.imaging.report import write_report
    from isoflop.imaging.sweep import ImagingSweep, cells, run_sweep
    from isoflop.run import only_one

    loaded = load_recipe(recipe, ImagingSweep, overrides)
    if dry_run:
        listed = [{"cell": name, "steps": made.n_steps()} for name, made in cells(loaded).items()]
        report_found({"cells": listed}, json, "nothing was run", [])
        print_table(listed)
        return
    with Bar("cell") as bar, stop_on_signal() as stop, only_one(out):
        records = run_sweep(loaded, out, on_stage=bar.stage, should_stop=stop)
    page = write_report(out)
    report_found({"report": str(page), "records": records}, json, f"{len(records)} runs, report in {page}", [])


def report(
    study: Annotated[Path, Parameter(metavar="STUDY", help="folder of imaging sweep or demo")], /, *, json: Json = None
) -> None:
    """Records and galleries of a study -> one HTML page and its figures."""
    from isoflop.imaging.report import write_report

    page = write_report(study)
    report_found({"report": str(page)}, json, f"report in {page}", [])


def demo(
    *,
    out: Out = Path("imaging-demo"),
    minutes: Annotated[float, Parameter(help="about, for training on 2 cores")] = 4.0,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Everything on this machine: glyphs behind a slab, networks, controls, a page."""
    from isoflop.imaging.demo import run_demo
    from isoflop.run import only_one

    with Bar("cell") as bar, stop_on_signal() as stop, only_one(out):
        found = run_demo(out, minutes=minutes, seed=seed, on_stage=bar.stage, should_stop=stop)
    report_found(found, json, f"report in {found['report']}", [])
    print_table(found["rows"])


STAGES = {"train": train, "evaluate": evaluate, "sweep": sweep, "report": report, "demo": demo}
"""`isoflop imaging NAME`."""
