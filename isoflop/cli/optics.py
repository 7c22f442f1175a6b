"""The commands of the photonic tensor core: optics inspect, optics demo."""

import logging
from importlib import resources
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from isoflop.cli.arguments import Json, Out
from isoflop.cli.console import Bar, flat, report_found
from isoflop.recipe import PositiveInt, Range, Seed, load_recipe

Preset = Annotated[str, Parameter(metavar="NAME", help="lin2024, lin2023, ideal or aihwkit")]
Fields = Annotated[str, Parameter("KEY=VALUE", help="fields of the core that go before those of the preset")]


def optics_inspect(
    *fields: Fields,
    preset: Preset = "lin2024",
    fan_in: Annotated[PositiveInt, Parameter(help="symbols of one dot product")] = 12_544,
    fan_out: Annotated[int, Range(at_least=1, at_most=10**9), Parameter(help="dot products of the layer")] = 64,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """One layer on a photonic tensor core: throughput, time, energy and error by term, effective bits."""
    from isoflop.optics.config import CoreConfig, load_preset
    from isoflop.optics.ledger import inspect_core

    load_preset(preset)  # names the presets there are
    with resources.as_file(resources.files("isoflop") / "presets" / "optics" / f"{preset}.toml") as path:
        config = load_recipe(path, CoreConfig, fields)
    found = inspect_core(config, fan_in, fan_out, seed=seed)
    found = {"preset": preset, "changes": list(fields), **found}
    report_found(found, json, f"{preset}, {fan_in:,} inputs, {fan_out:,} outputs", list(flat(found, depth=4)))


def optics_demo(
    *,
    out: Out = Path("demo-optics"),
    preset: Preset = "lin2024",
    seed: Seed = 0,
    n_train: Annotated[int, Range(at_least=50, at_most=100_000), Parameter(help="glyphs to train on")] = 2500,
    n_test: Annotated[int, Range(at_least=1, at_most=100_000), Parameter(help="glyphs to test on")] = 2000,
    json: Json = None,
) -> None:
    """A photonic tensor core on one page: transfer, eye, error budget, accuracy, throughput, energy."""
    from isoflop.photonic_demo.demo import run_core_demo

    logging.getLogger("isoflop.numerics").setLevel(logging.WARNING)  # a table of formats for each of 19 networks
    with Bar("run") as bar:
        found = run_core_demo(out, preset=preset, seed=seed, n_train=n_train, n_test=n_test, on_progress=bar.stage)
    accuracy = found["accuracy"]
    rows = [("digital", f"{accuracy['digital']:.1%}")]
    rows += [
        (f"{row['bits']} bits", f"moved {row['moved']:.1%}, trained in situ {row['in_situ']:.1%}")
        for row in accuracy["bits"]
    ]
    summary = {name: found[name] for name in ("inspection", "signs", "energy", "origin", "budgets")}
    report_found({**summary, "accuracy": accuracy}, json, f"report in {out / 'report.html'}", rows)
