"""The page of a photonic tensor core: from voltage to light to accuracy, speed and energy. No numbers are made here."""

from collections.abc import Mapping
from typing import Any

from isoflop.pages.html import page

TERM_NAMES: dict[str, str] = {
    "adc": "ADC",
    "shot": "shot noise",
    "rin": "laser, fast (RIN)",
    "weight_dac": "weight DAC",
    "input_dac": "input DAC",
    "gain": "laser, slow (gain)",
    "amplifier": "amplifier",
    "reset": "reset (kT/C)",
    "dark": "dark current",
    "optics": "extinction, leak, bias",
    "residual": "calibration residual",
    "output": "output noise",
}

SIGN_TEXT = {
    "fold": "magnitude on the input, its sign folded onto the weight",
    "offset": "inputs shifted into the positive, the sum of the weights subtracted",
    "two_pass": "positive and negative part one after the other",
    "field": "sign in the phase of the field, read against a reference",
}


def core_page(results: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """HTML of a whole demo."""
    accuracy, config = results["accuracy"], results["origin"]["config"]
    fan_in, budget = next(iter(reversed(results["budgets"].items())))
    causes = sorted(budget["relative_error"], key=budget["relative_error"].__getitem__, reverse=True)
    return page(
        "photonic_demo/page.html",
        title="A tensor core made of light",
        results=results,
        eyes=list(results["eyes"].values()),
        largest_fan_in=int(fan_in),
        causes=[TERM_NAMES.get(name) or name for name in causes],
        cores=[{"name": f"{row['bits']} bits, all noise", **row} for row in accuracy["bits"]]
        + [{"name": f"{row['electrons']:g} electrons a symbol", **row} for row in accuracy["electrons"]],
        signs=[{"how": SIGN_TEXT[row["signs"]], **row} for row in results["signs"]],
        speeds=[
            {"preset": name, "hidden": line["peak"], **mark}
            for name, line in results["throughput"]["lines"].items()
            for mark in line["marks"]
        ],
        config=[(key, str(value)) for key, value in config.items() if key != "energy"],
        energies=[(f"energy.{key}", str(value)) for key, value in config["energy"].items()],
        pictures=pictures,
    )
