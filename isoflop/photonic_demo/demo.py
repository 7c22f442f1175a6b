"""`isoflop optics demo`: run all experiments, write their numbers, their pictures and one page."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isoflop.optics.config import CoreConfig, load_preset
from isoflop.optics.ledger import inspect_core
from isoflop.pages.plot import save, svg_text
from isoflop.photonic_demo import experiments, figures
from isoflop.photonic_demo.page import core_page
from isoflop.recipe import write_json, write_text
from isoflop.run import commit, now, processor

FAN_IN, FAN_OUT = 12_544, 64
"""Images of 112x112 pixels, as the device was shown with; the layer that the headline numbers are for."""


def run_core_demo(
    out: Path,
    *,
    preset: str = "lin2024",
    seed: int = 0,
    n_train: int = 2500,
    n_test: int = 2000,
    on_progress: Callable[[str, float, float], None] | None = None,
) -> dict[str, Any]:
    """Everything the core does, measured on this machine: `out`/report.html, results.json and figures/.

    Raises:
        OpticsError: no such preset.
        DataError: matplotlib is missing.
    """
    began = time.monotonic()
    config = load_preset(preset)
    tell = on_progress or (lambda *_: None)
    tell("physics", 0.0, 1.0)
    results = measure(config, seed, preset)
    results["accuracy"] = experiments.accuracies(config, seed, n_train=n_train, n_test=n_test, on_progress=on_progress)
    tell("page", 1.0, 1.0)
    results["origin"] = {
        "preset": preset,
        "seed": seed,
        "commit": commit(),
        "hardware": processor(),
        "time": now(),
        "wall_s": round(time.monotonic() - began, 1),
        "config": dataclasses.asdict(config),
    }
    drawn = {
        "transfer": (figures.transfer_figure(results["transfer"]), "Light against voltage of both modulators"),
        "eye": (figures.eye_figure(results["eyes"]), "Eye diagrams"),
        "budget": (figures.budget_figure(results["budgets"]), "Error of a result by cause"),
        "light": (figures.light_figure(results["light"]), "Effective bits against light"),
        "fidelity": (figures.fidelity_figure(results["fidelities"]), "Errors of both models"),
        "throughput": (figures.throughput_figure(results["throughput"]), "Throughput against fan-in"),
        "energy": (figures.energy_figure(results["energy"]), "Energy per operation by part"),
        "glyphs": (figures.glyph_figure(results["accuracy"]), "Test images"),
        "accuracy": (figures.accuracy_figure(results["accuracy"]), "Accuracy against bits and photons"),
    }
    pictures = {name: svg_text(figure, name, label) for name, (figure, label) in drawn.items()}
    for name, (figure, _) in drawn.items():
        for ending in ("svg", "png"):
            save(figure, out / "figures" / f"{name}.{ending}")
    write_json(out / "results.json", without_pixels(results))
    write_text(out / "report.html", core_page(results, pictures))
    return results


def without_pixels(results: dict[str, Any]) -> dict[str, Any]:
    """Results without what was made to be looked at: densities, single draws, images."""
    bulky = ("counts", "errors", "samples")
    return {
        name: without_pixels(value) if isinstance(value, dict) else value
        for name, value in results.items()
        if name not in bulky
    }


def measure(config: CoreConfig, seed: int, preset: str) -> dict[str, Any]:
    """All experiments but the training."""
    return {
        "inspection": inspect_core(config, FAN_IN, FAN_OUT, seed=seed),
        "transfer": experiments.transfer_curves(config),
        "eyes": experiments.eyes(config, seed),
        "budgets": experiments.budgets(config, seed),
        "light": experiments.bits_against_light(config, seed),
        "fidelities": experiments.two_fidelities(config, seed),
        "signs": experiments.sign_schemes(config, seed),
        "throughput": experiments.throughput(
            {"lin2023": load_preset("lin2023"), "lin2024": load_preset("lin2024")}
            if preset in ("lin2023", "lin2024")
            else {preset: config}
        ),
        "energy": experiments.energy_by_channels(config),
    }
