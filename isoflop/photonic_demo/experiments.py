"""What the page shows, as plain data: every experiment is a function of a core's configuration and a seed.

Nothing is drawn here. Arrays are lists of floats, so that a result can be written as JSON and drawn again later.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from isoflop.in_situ.images import Images, drawn_glyphs
from isoflop.in_situ.perceptron import Perceptron
from isoflop.in_situ.train import Classify, TrainOptions, accuracy, moved, train_network
from isoflop.numerics.assign import assign
from isoflop.numerics.noise import VALIDATION, NoiseKey
from isoflop.numerics.photonic import PhotonicProduct
from isoflop.numerics.section import NumericsSection, PhotonicSection, Rule
from isoflop.optics.config import CoreConfig, Signs
from isoflop.optics.ledger import energy_ledger, error_budget
from isoflop.optics.modulator import encode_inputs_, encode_weights_, input_light_, weight_light_
from isoflop.optics.schedule import schedule
from isoflop.optics.tensor_core import TensorCore
from isoflop.optics.waveform import WaveformCore, filtered, mixed, pre_emphasis

Progress = Callable[[str, float, float], None]
Tree = dict[str, Any]

FAN_INS = (784, 12_544, 131_072)
BITS = (8, 6, 5, 4, 3)
ELECTRONS = (1000.0, 100.0, 30.0, 10.0)
SAMPLES = 48
"""Points of a drawn symbol."""
EYE_SYMBOLS = 1500


def transfer_curves(config: CoreConfig, bits: int = 4) -> Tree:
    """Light against voltage, and the levels that a DAC of a few bits can set."""
    volts = torch.linspace(-1.5, 1.5, 601, dtype=torch.float64)
    phase = math.pi * volts  # voltages are in units of V_pi
    few = dataclasses.replace(config, input_bits=bits, weight_bits=bits)
    grid = torch.linspace(0.0, 1.0, 4001, dtype=torch.float64)
    return {
        "volts_per_v_pi": volts.tolist(),
        "input": input_light_(config, phase.clone()).tolist(),
        "weight": weight_light_(config, phase.clone()).tolist(),
        "bits": bits,
        "input_levels": encode_inputs_(few, grid.clone()).unique().tolist(),
        "weight_levels": encode_weights_(few, 2.0 * grid - 1.0).unique().tolist(),
        "contrast": config.contrast,
    }


def eye_diagram(config: CoreConfig, seed: int) -> Tree:
    """Light behind the input modulator over two symbols, many symbols on top of each other, four levels sent.

    Traces are the first-order response of A4 in continuous time, with the noise of laser and photons. `error` is that
    of a symbol's mean light, `model_error` what the symbol model makes of it: mean voltage first, sine afterwards.
    """
    generator = torch.Generator().manual_seed(seed)
    levels = torch.tensor([0.0, 1 / 3, 2 / 3, 1.0], dtype=torch.float64)
    sent = levels[torch.randint(4, (EYE_SYMBOLS + 2,), generator=generator)]
    wanted = torch.asin(2.0 * sent - 1.0)
    limit = config.drive_limit_rad
    drive = filtered(wanted[None], pre_emphasis(config))[0].clamp(-limit, limit)
    tau = config.symbol_rate_hz / (2.0 * math.pi * config.bandwidth_hz)  # in symbols; 0 for unlimited bandwidth
    time = torch.arange(SAMPLES, dtype=torch.float64) / SAMPLES
    fall = torch.exp(-time / tau) if tau else torch.zeros(SAMPLES, dtype=torch.float64)
    phase = torch.empty(len(drive), SAMPLES, dtype=torch.float64)
    now = drive[0]
    for symbol, target in enumerate(drive):
        phase[symbol] = target + (now - target) * fall
        now = target + (now - target) * math.exp(-1.0 / tau) if tau else target
    light = input_light_(config, phase)
    spread = (light.square() * config.rin_per_symbol + light / config.n_e).sqrt()
    light = light + spread * torch.randn(light.shape, dtype=torch.float64, generator=generator)
    pairs = torch.cat([light[1:-1], light[2:]], 1)
    edges = torch.linspace(-0.06, 1.06, 141, dtype=torch.float64)
    counts = torch.stack([torch.histogram(column.contiguous(), bins=edges).hist for column in pairs.T], 1)
    averages, modelled = light[1:].mean(1), input_light_(config, mixed(drive, config.isi))
    return {
        "counts": counts.tolist(),
        "low": -0.06,
        "high": 1.06,
        "error": (averages - sent[1:]).square().mean().sqrt().item(),
        "model_error": (modelled - sent).square().mean().sqrt().item(),
        "isi": config.isi,
    }


def eyes(config: CoreConfig, seed: int) -> Tree:
    """The eye without correction, with pre-emphasis and headroom for it, and with that at three times the bandwidth."""
    corrected = dataclasses.replace(config, pre_emphasis=True, headroom=1.4)
    faster = dataclasses.replace(corrected, bandwidth_hz=3.0 * config.bandwidth_hz)
    return {
        "left alone": eye_diagram(dataclasses.replace(config, pre_emphasis=False), seed),
        "pre-emphasis": eye_diagram(corrected, seed),
        "three times the bandwidth": eye_diagram(faster, seed),
    }


def operands(fan_in: int, seed: int, rows: int = 32, neurons: int = 32) -> tuple[Tensor, Tensor]:
    """Inputs and weights of both signs, uniform."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, fan_in, generator=generator) * 2.0 - 1.0
    return x, torch.rand(neurons, fan_in, generator=generator) * 2.0 - 1.0


def budgets(config: CoreConfig, seed: int) -> Tree:
    """Error by cause at three fan-ins."""
    generator = torch.Generator().manual_seed(seed)
    fan_ins = [n for n in FAN_INS if n <= config.max_fan_in]
    return {str(n): error_budget(config, *operands(n, seed), generator) for n in fan_ins}


def bits_against_light(config: CoreConfig, seed: int, fan_in: int = 4096) -> Tree:
    """Effective bits over optical power, for converters of several widths."""
    generator = torch.Generator().manual_seed(seed)
    x, w = operands(fan_in, seed)
    powers = [10.0 ** (k / 2.0) for k in range(-8, 5)]
    found = {}
    for bits in (12, 8, 6, 4):
        cores = [_with_bits(dataclasses.replace(config, power_mw=p), bits) for p in powers]
        found[str(bits)] = [error_budget(c, x, w, generator)["measured_effective_bits"] for c in cores]
    electrons = [dataclasses.replace(config, power_mw=p).n_e for p in powers]
    return {"power_mw": powers, "electrons": electrons, "effective_bits": found, "fan_in": fan_in}


def two_fidelities(config: CoreConfig, seed: int, draws: int = 6000, fan_in: int = 256) -> Tree:
    """The error of one dot product, drawn again and again, by the closed form and symbol by symbol."""
    exact = _with_bits(dataclasses.replace(config, bandwidth_hz=math.inf, exact_rin=True, full_scale=0.4 * fan_in), 32)
    generator = torch.Generator().manual_seed(seed)
    x, w = torch.rand(1, fan_in, generator=generator), torch.rand(1, fan_in, generator=generator) * 2.0 - 1.0
    true = (x.double() @ w.double().T).item()
    result: Tree = {"fan_in": fan_in, "draws": draws}
    for name, core in (("analytic", TensorCore(exact)), ("waveform", WaveformCore(exact))):
        y = core.matmul(x.expand(draws, fan_in), w, generator)[:, 0].double() - true
        result[name] = {"mean": y.mean().item(), "std": y.std().item(), "errors": y.tolist()}
    return result


def sign_schemes(config: CoreConfig, seed: int, fan_in: int = 4096) -> list[Tree]:
    """The four ways to multiply signed numbers: what each costs in time and in error."""
    generator = torch.Generator().manual_seed(seed)
    x, w = operands(fan_in, seed)
    schemes: tuple[Signs, ...] = ("fold", "offset", "two_pass", "field")
    rows = []
    for signs in schemes:
        chosen = dataclasses.replace(config, signs=signs)
        error = error_budget(chosen, x, w, generator)
        plan = schedule(chosen, fan_in, 64)
        rows.append(
            {
                "signs": signs,
                "passes": plan.passes,
                "gops": plan.gops,
                "error": error["measured_relative_error"],
                "effective_bits": error["measured_effective_bits"],
            }
        )
    return rows


def throughput(configs: dict[str, CoreConfig]) -> Tree:
    """GOPS over fan-in, with the reset in plain sight and hidden behind the next window."""
    fan_ins = [round(2 ** (k / 4)) for k in range(16, 69)]
    lines = {}
    for name, config in configs.items():
        seen = dataclasses.replace(config, hide_reset=False)
        hidden = dataclasses.replace(config, hide_reset=True)
        lines[name] = {
            "visible": [schedule(seen, n).gops for n in fan_ins],
            "hidden": [schedule(hidden, n).gops for n in fan_ins],
            "peak": schedule(config, 1).peak_gops,
            "marks": [{"fan_in": n, "gops": schedule(seen, n).gops} for n in FAN_INS],
        }
    return {"fan_in": fan_ins, "lines": lines}


def energy_by_channels(config: CoreConfig, fan_in: int = 12_544) -> list[Tree]:
    """pJ per operation by part, for one input stream that feeds 1, 4, 16 or 64 weight modulators."""
    rows = []
    for channels in (1, 4, 16, 64):
        chosen = dataclasses.replace(config, channels=channels, power_mw=config.power_mw * channels)
        plan = schedule(chosen, fan_in, 64)
        rows.append({"channels": channels, "gops": plan.gops, **energy_ledger(chosen, plan)})
    return rows


def accuracies(config: CoreConfig, seed: int, *, n_train: int, n_test: int, on_progress: Progress | None) -> Tree:
    """Glyphs of 112x112 pixels, 12,544-32-10: one digital start, trained on as long digitally or on the core.

    What was trained digitally to its end is also moved to each core.
    """
    steps = 3 + len(BITS) + len(ELECTRONS)
    done = 0

    def tell(what: str) -> None:
        nonlocal done
        if on_progress is not None:
            on_progress(what, done, steps)
        done += 1

    tell("glyphs")
    train_images, test_images = drawn_glyphs(n_train, n_test, seed=seed)
    options = TrainOptions(n_epochs=6, batch=50, learning_rate=1e-3, seed=seed)
    widths = (112 * 112, 32, 10)
    workload = Classify(train_images, test_images, options)
    tell("start")
    start, _ = train_network(workload, widths, None)
    tell("digital")
    digital, _ = train_network(workload, widths, None, start=start)
    result: Tree = {
        "n_train": n_train,
        "n_test": n_test,
        "widths": widths,
        "epochs": options.n_epochs,
        "digital": accuracy(digital, test_images),
        "samples": [test_images.x[k].view(112, 112)[::2, ::2].tolist() for k in range(8)],
        "bits": [],
        "electrons": [],
    }
    for bits in BITS:
        tell(f"{bits} bits")
        changes = {"input_bits": bits, "weight_bits": bits, "adc_bits": bits, "range_std": 0.0}
        result["bits"].append({"bits": bits, **_in_situ(workload, start, digital, _numerics(config, changes))})
    for electrons in ELECTRONS:
        tell(f"{electrons:g} electrons")
        changes = {"power_mw": config.power_mw * electrons / config.n_e, "noise": ("shot",)}
        changes |= {"input_bits": 32, "weight_bits": 32, "adc_bits": 32}
        numbers = _in_situ(workload, start, digital, _numerics(config, changes))
        result["electrons"].append({"electrons": electrons, **numbers})
    return result


def _in_situ(workload: Classify, start: Perceptron, digital: Perceptron, numerics: NumericsSection) -> Tree:
    trained, _ = train_network(workload, digital.widths, numerics, start=start)
    there = moved(digital, numerics, workload.options.seed)
    return {
        "moved": accuracy(there, workload.test),
        "in_situ": accuracy(trained, workload.test),
        "clipped": _clipped_share(trained, numerics, workload.test),
    }


def _clipped_share(model: Perceptron, numerics: NumericsSection, images: Images) -> float:
    """Share of the windows of a pass over the test images that were beyond full scale."""
    copy = Perceptron(model.widths)
    copy.load_state_dict(model.state_dict())
    noise_key = NoiseKey(0, numerics.seed)
    assign(copy, numerics, noise_key)
    noise_key.set(0, VALIDATION)
    copy.train()  # clips are counted in training mode
    with torch.no_grad():
        copy(images.first(500).x)
    counts = torch.stack([m.counts for m in copy.modules() if isinstance(m, PhotonicProduct)]).sum(0)
    return (counts[0] / counts[1].clamp_min(1)).item()


def _numerics(config: CoreConfig, changes: Tree) -> NumericsSection:
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "energy"}
    return NumericsSection(
        rules=(Rule("*", "photonic"),), photonic=PhotonicSection(preset="lin2024", core={**fields, **changes})
    )


def _with_bits(config: CoreConfig, bits: int) -> CoreConfig:
    return dataclasses.replace(config, input_bits=bits, weight_bits=bits, adc_bits=bits)
