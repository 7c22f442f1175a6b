"""What a layer costs and how exact it is: energy by part, error by cause. Source: A6, A11."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from isoflop.optics.config import EXACT_BITS, CoreConfig, EnergyConfig
from isoflop.optics.receiver import noise_terms
from isoflop.optics.schedule import Schedule, schedule
from isoflop.optics.tensor_core import TensorCore
from isoflop.optics.units import effective_bits, ratio_of_db

CONVERTERS = ("input_dac", "weight_dac", "adc")


def modulator_pj(config: CoreConfig) -> float:
    """One symbol of one terminated modulator, its levels equally frequent. Source: A11 (V_rms^2 T_s / R)."""
    energy = config.energy
    return energy.drive_vpp_v**2 / 12.0 * config.symbol_s / energy.line_ohm * 1e12


def energy_terms(config: CoreConfig, plan: Schedule) -> dict[str, float]:
    """Energy of one layer by part, pJ. K channels share the light, the input stream and its memory."""
    energy: EnergyConfig = config.energy
    streams = math.ceil(plan.fan_out / config.channels) * plan.passes * plan.fan_in  # symbols of the input stream
    samples = plan.fan_out * plan.passes * plan.fan_in  # symbols of all weight streams
    laser_mw = config.power_mw * ratio_of_db(energy.loss_db) / energy.laser_efficiency
    on_pj_per_mw = plan.layer_s * 1e9  # mW times seconds, in pJ
    return {
        "laser": laser_mw * on_pj_per_mw,
        "bias": energy.bias_mw * on_pj_per_mw,
        "receiver": energy.receiver_mw * config.channels * on_pj_per_mw,
        "input_dac": streams * energy.dac_pj,
        "weight_dac": samples * energy.dac_pj,
        "input_modulator": streams * modulator_pj(config),
        "weight_modulator": samples * modulator_pj(config),
        "adc": plan.windows * energy.adc_pj,
        "memory": (streams + samples) * energy.memory_pj,
    }


def energy_ledger(config: CoreConfig, plan: Schedule) -> dict[str, Any]:
    """pJ per operation by part, in all, and without converters; TOPS/W of both."""
    n_operations = 2 * plan.fan_in * plan.fan_out
    terms = {name: value / n_operations for name, value in energy_terms(config, plan).items()}
    total = sum(terms.values())
    bare = sum(value for name, value in terms.items() if name not in CONVERTERS)
    return {
        "pj_per_op": terms,
        "total_pj_per_op": total,
        "without_converters_pj_per_op": bare,
        "tops_per_w": 1.0 / total if total else math.inf,
        "without_converters_tops_per_w": 1.0 / bare if bare else math.inf,
        "layer_pj": total * n_operations,
    }


def error_budget(config: CoreConfig, x: Tensor, w: Tensor, generator: torch.Generator) -> dict[str, Any]:
    """Error of x W^T by cause, as share of the rms of the results; `measured` is one draw with all of them.

    Noise terms are the closed forms of A6; converters and optics are switched on one at a time.
    """
    exact = x.double() @ w.double().T
    rms = exact.square().mean().sqrt().item()
    clean = {"input_bits": EXACT_BITS, "weight_bits": EXACT_BITS, "adc_bits": EXACT_BITS}
    quiet = dataclasses.replace(config.quiet(), **clean)

    def result(**bits: int) -> Tensor:
        return TensorCore(dataclasses.replace(quiet, **bits)).matmul(x.double(), w.double())

    def share(found: Tensor, reference: Tensor) -> float:
        return (found - reference).square().mean().sqrt().item() / rms

    ideal = result()
    budget = {"optics": share(ideal, exact)}
    for name, key in (("input_dac", "input_bits"), ("weight_dac", "weight_bits"), ("adc", "adc_bits")):
        if getattr(config, key) != EXACT_BITS:
            budget[name] = share(result(**{key: getattr(config, key)}), ideal)
    core = TensorCore(config)
    measured = core.product(x, w, generator)
    inputs, weights = core.encode_inputs(x.double(), generator), core.encode_weights(w.double(), generator)
    charge_MN = core.charge(inputs, weights)
    terms = noise_terms(config, core.moments(inputs, weights), charge_MN, measured.full_scale) if config.noise else {}
    gain = (2.0 if config.signs == "offset" else 1.0) * weights.scale * inputs.scale
    windows = charge_MN.shape[0] // gain.shape[0] if gain.shape[0] > 1 else 1
    for name, variance in terms.items():
        spread = variance.expand_as(charge_MN) * gain.repeat(windows, 1).square()
        passes = 2.0 if config.signs == "two_pass" else 1.0
        budget[name] = math.sqrt(passes * spread.mean().item()) / rms
    total = math.sqrt(sum(value**2 for value in budget.values()))
    error = share(measured.y.double(), exact)
    return {
        "relative_error": budget,
        "total_relative_error": total,
        "measured_relative_error": error,
        "effective_bits": effective_bits(1.0, total) if total else None,
        "measured_effective_bits": effective_bits(1.0, error) if error else None,
        "clipped_share": measured.n_clipped / measured.y.numel(),
        "full_scale_mac": None if measured.full_scale is None else measured.full_scale.item(),
    }


def inspect_core(config: CoreConfig, fan_in: int, fan_out: int, *, seed: int = 0) -> dict[str, Any]:
    """Throughput, time, energy and error of one layer; operands are drawn uniformly, inputs and weights of both signs.

    Raises:
        OpticsError: sizes that the core cannot do.
    """
    plan = schedule(config, fan_in, fan_out)
    generator = torch.Generator().manual_seed(seed)
    n_windows, n_neurons = 32, min(fan_out, 32)  # enough for errors to two digits
    sample = min(fan_in, config.max_fan_in)
    x = torch.rand(n_windows, sample, generator=generator) * 2.0 - 1.0
    w = torch.rand(n_neurons, sample, generator=generator) * 2.0 - 1.0
    errors = error_budget(config, x, w, generator)
    full_scale = errors["full_scale_mac"]
    return {
        "speed": dataclasses.asdict(plan),
        "light": {
            "electrons_per_symbol": config.n_e,
            "symbol_s": config.symbol_s,
            "capacitor_f": None if full_scale is None else config.capacitance_f(full_scale),
            "droop": -math.expm1(-(sample - 1) * config.symbol_s / config.leak_s),
            "isi": config.isi,
        },
        "energy": energy_ledger(config, plan),
        "error": errors,
    }
