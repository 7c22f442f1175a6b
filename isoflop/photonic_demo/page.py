"""The page of a photonic tensor core: from voltage to light to accuracy, speed and energy. No numbers are made here."""

from collections.abc import Mapping
from typing import Any

from isoflop.pages.html import (
    Markup,
    Pictures,
    bullets,
    decimal,
    facts,
    folded,
    join,
    page,
    percent,
    picture,
    section,
    sentence,
    table,
    tiles,
)

Tree = Mapping[str, Any]

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


def core_page(results: Tree, pictures: Pictures) -> str:
    """HTML of a whole demo."""
    origin = results["origin"]
    footer = (
        f"isoflop optics demo --preset {origin['preset']} --seed {origin['seed']}; commit "
        f"{origin['commit'] or 'unknown'}; {origin['hardware']}; {origin['wall_s']:.0f} s; {origin['time']}. All "
        "numbers: results.json."
    )
    sections = [
        ("modulators", "Modulators", _modulators(results, pictures)),
        ("eye", "Eye", _eye(results, pictures)),
        ("error", "Error budget", _error(results, pictures)),
        ("light", "Light", _light(results, pictures)),
        ("learning", "Learning", _learning(results, pictures)),
        ("signs", "Signs", _signs(results)),
        ("speed", "Speed", _speed(results, pictures)),
        ("energy", "Energy", _energy(results, pictures)),
        ("origin", "What is known", _origin(results)),
    ]
    return page("A tensor core made of light", _lead(results), sections, footer)


def _lead(results: Tree) -> Markup:
    found, accuracy = results["inspection"], results["accuracy"]
    eight = accuracy["bits"][0]
    speed, error, energy = found["speed"], found["error"], found["energy"]
    return join(
        sentence(
            "Inputs and weights stream through two modulators in series, which multiply; a capacitor adds what a "
            "pair of "
            f"photodiodes sees: one number after {speed['fan_in']:,} symbols of light. This page simulates such a "
            "core, "
            "prices it, and trains a network on it. Speed follows from published rates; the other constants are "
            "assumptions that a configuration can change."
        ),
        tiles(
            [
                ("speed of a neuron", f"{speed['gops']:.1f} GOPS", f"{speed['fan_in']:,} inputs"),
                (
                    "effective bits",
                    f"{error['measured_effective_bits']:.1f}",
                    f"error {error['measured_relative_error']:.1%} of the rms",
                ),
                (
                    "energy",
                    f"{energy['total_pj_per_op']:.1f} pJ/op",
                    f"{energy['without_converters_pj_per_op']:.1f} without converters",
                ),
                (
                    f"accuracy at {eight['bits']} bits",
                    f"{eight['in_situ']:.1%}",
                    f"digital {accuracy['digital']:.1%}, chance 10%",
                ),
            ]
        ),
    )


def _modulators(results: Tree, pictures: Pictures) -> Markup:
    found = results["transfer"]
    return section(
        "modulators",
        "From voltage to light",
        sentence(
            "A Mach-Zehnder modulator turns voltage into light as a sine. Driven by the arcsine, its light is linear "
            "in the value; the steps of the DAC are then even in voltage and finest near dark and bright."
        ),
        picture(
            pictures,
            "transfer",
            f"Curves with an extinction of finite depth (contrast {found['contrast']:.4f}); dots: the levels of a "
            f"{found['bits']}-bit DAC; shaded: its range.",
        ),
    )


def _eye(results: Tree, pictures: Pictures) -> Markup:
    alone, corrected, faster = results["eyes"].values()
    return section(
        "eye",
        "At full speed, symbols run into each other",
        sentence(
            f"A bandwidth as large as the symbol rate leaves {alone['isi']:.0%} of each symbol in the next one's "
            "voltage. "
            f"Digital pre-emphasis restores the mean voltage of every symbol, but light follows the sine of a moving "
            f"voltage: its error goes from {alone['error']:.1%} to {corrected['error']:.1%} of full scale, where the "
            "usual "
            f"symbol model (mean voltage first, sine afterwards) promises {corrected['model_error']:.1%}. Bandwidth is "
            f"what opens the eye: three times as much leaves {faster['error']:.1%}."
        ),
        picture(
            pictures,
            "eye",
            "Four random levels, 1,500 symbols on top of each other, first-order response, photon and laser noise; the "
            "DAC has 40% of headroom for pre-emphasis. Error: rms of the mean light of a symbol. The other sections "
            "use "
            "the symbol model.",
        ),
    )


def _error(results: Tree, pictures: Pictures) -> Markup:
    fan_in, budget = next(iter(reversed(results["budgets"].items())))
    causes = sorted(budget["relative_error"].items(), key=lambda item: -item[1])
    largest = ", ".join(TERM_NAMES.get(name) or name for name, _ in causes[:3])
    fidelity = results["fidelities"]
    return section(
        "error",
        "Where the error comes from",
        sentence(
            f"With {results['origin']['config']['power_mw']:g} mW at the detectors and {int(fan_in):,} inputs the "
            "largest "
            f"causes are: {largest}. Causes are switched on one at a time; their root sum of squares is what a core "
            "with "
            "all of them shows."
        ),
        picture(
            pictures,
            "budget",
            "Uniform operands of both signs. Noise: closed forms; converters and optics: measured. Diamonds: all "
            "causes "
            "at once.",
        ),
        sentence(
            "The closed form of the fast model is checked against a second model that makes every symbol, photon noise "
            f"and all: standard deviations {fidelity['analytic']['std']:.5f} and {fidelity['waveform']['std']:.5f}."
        ),
        picture(
            pictures, "fidelity", f"{fidelity['draws']:,} draws each; they share no formula between light and charge."
        ),
    )


def _light(results: Tree, pictures: Pictures) -> Markup:
    found = results["light"]
    return section(
        "light",
        "How much light is enough",
        sentence(
            "Below some power the receiver's noise drowns the result, above it the converters are the limit and more "
            "light buys nothing."
        ),
        picture(
            pictures,
            "light",
            f"Results of {found['fan_in']:,} symbols with all noise terms, by the width of all converters.",
        ),
    )


def _learning(results: Tree, pictures: Pictures) -> Markup:
    found = results["accuracy"]
    worst, shape = found["bits"][-1], "-".join(f"{width:,}" for width in found["widths"])
    rows = [
        [f"{row['bits']} bits, all noise", row["moved"], row["in_situ"], row["clipped"]] for row in found["bits"]
    ] + [
        [f"{row['electrons']:g} electrons a symbol", row["moved"], row["in_situ"], row["clipped"]]
        for row in found["electrons"]
    ]
    return section(
        "learning",
        "Weights moved to the core, and trained on it",
        sentence(
            f"{found['n_train']:,} glyphs of 112x112 pixels train a network {shape} digitally for {found['epochs']} "
            f"epochs, and {found['epochs']} more: digitally, or with a core in the loop. {found['n_test']:,} glyphs of "
            f"fonts it has not seen test it. On a core of {worst['bits']} bits the digital weights get "
            f"{worst['moved']:.1%}, those that met the core in training {worst['in_situ']:.1%} (digital weights used "
            f"digitally: {found['digital']:.1%})."
        ),
        picture(pictures, "glyphs", "Test images, every second pixel shown."),
        picture(
            pictures,
            "accuracy",
            "One seed; bars: 90% binomial intervals of the test set; dashed: digital. Left: all noise terms, full "
            "scale at its best for the ADC. Right: "
            "exact converters, shot noise alone.",
        ),
        folded(
            "all numbers, clips included",
            table(
                ["core", "moved", "trained in situ", "windows clipped"],
                [[name, percent(a, 1), percent(b, 1), percent(c, 3)] for name, a, b, c in rows],
            ),
        ),
    )


def _signs(results: Tree) -> Markup:
    return section(
        "signs",
        "Light has no sign",
        sentence(
            "Four exact ways to multiply negative numbers; which one the published device uses is not known to us. "
            "All other sections fold the sign onto the weights."
        ),
        table(
            ["scheme", "how", "windows", "GOPS", "error", "effective bits"],
            [
                [
                    *(row["signs"], SIGN_TEXT[row["signs"]], row["passes"], decimal(row["gops"], 3)),
                    *(percent(row["error"], 2), decimal(row["effective_bits"], 2)),
                ]
                for row in results["signs"]
            ],
            text_columns=(0, 1),
        ),
    )


def _speed(results: Tree, pictures: Pictures) -> Markup:
    found = results["throughput"]
    rows = [
        [name, mark["fan_in"], decimal(mark["gops"], 4), decimal(line["peak"], 4)]
        for name, line in found["lines"].items()
        for mark in line["marks"]
    ]
    return section(
        "speed",
        "Speed is the symbol rate, less the resets",
        sentence(
            "A symbol is a multiplication and an addition, so 32.5 and 60 billion symbols a second are 65 and 120 "
            "GOPS. Discharging the capacitor takes 20 ns here: small fan-ins pay for it, unless a second capacitor "
            "takes "
            "over, which hides it behind any longer window."
        ),
        picture(pictures, "throughput", "Solid: reset in plain sight; dashed: hidden behind the next window."),
        table(["preset", "fan-in", "GOPS, reset visible", "GOPS, reset hidden"], rows),
    )


def _energy(results: Tree, pictures: Pictures) -> Markup:
    rows = results["energy"]
    return section(
        "energy",
        "Energy is the converters",
        sentence(
            "High-speed DACs take most of it, so numbers without converters flatter the optics. Channels that share an "
            "input stream share its DAC; every weight stream needs its own."
        ),
        picture(
            pictures, "energy", "12,544 inputs, 64 neurons, 1 mW a channel at the detectors; all parts are assumptions."
        ),
        table(
            ["channels", "GOPS", "pJ/op", "TOPS/W", "pJ/op without converters", "TOPS/W without"],
            [
                [
                    *(row["channels"], decimal(row["gops"], 4), decimal(row["total_pj_per_op"], 3)),
                    *(decimal(row["tops_per_w"], 3), decimal(row["without_converters_pj_per_op"], 3)),
                    decimal(row["without_converters_tops_per_w"], 3),
                ]
                for row in rows
            ],
        ),
    )


def _origin(results: Tree) -> Markup:
    config = results["origin"]["config"]
    shown = {key: value for key, value in config.items() if key != "energy"}
    return section(
        "origin",
        "What is known, and what is assumed",
        bullets(
            [
                "From Lin et al. (arXiv 2311.16896; Nature Communications 15, 9081, 2024): two thin-film lithium "
                "niobate modulators and a charge-integrating receiver, 65 and 120 GOPS a neuron, weights updated at "
                "60 GHz, "
                "112x112-pixel images, negative numbers, training on the device.",
                "Derived from that: 32.5 and 60 billion symbols a second, 12,544 inputs.",
                "Assumed by us: everything else, from the laser's power to the bits of the converters. The paper's "
                "accuracy, noise and energy are not reproduced here, and no number of this page is one of the paper's "
                "measurements.",
            ]
        ),
        folded(
            "the whole configuration",
            facts((key, str(value)) for key, value in shown.items()),
            facts((f"energy.{key}", str(value)) for key, value in config["energy"].items()),
        ),
    )
