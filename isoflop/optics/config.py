"""What a photonic tensor core is made of: one frozen dataclass, checked when it is made, and its presets.

A preset is a TOML file in isoflop/presets/optics. A field marked [A] in the sheet is an assumption of ours, not of the
paper that a preset is named after: see docs/optics.md.
"""

import dataclasses
import difflib
import math
import tomllib
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal, get_args

from isoflop.optics.units import ELEMENTARY_CHARGE_C, contrast_of_extinction, ratio_of_db

EXACT_BITS = 32
"""A converter with so many bits is none: values pass unchanged."""

Term = Literal["shot", "dark", "reset", "amplifier", "rin", "gain", "residual", "output"]
Signs = Literal["fold", "offset", "two_pass", "field"]
Encoding = Literal["asin", "raw", "linear"]
Scaling = Literal["row", "tensor"]

_INF = math.inf


class OpticsError(ValueError):
    """A value that no such core can have; the message names the field and a valid range."""


@dataclass(frozen=True)
class EnergyConfig:
    """What each part draws. All values are assumptions (A11 gives no measured one)."""

    laser_efficiency: float = 0.2
    """Wall plug to light, 0 to 1."""
    loss_db: float = 10.0
    """Laser to detector at x = 1, 0 or more: what the laser emits is power_mw times this."""
    bias_mw: float = 10.0
    """Bias control of all modulators, mW."""
    receiver_mw: float = 5.0
    """Amplifier and switches of one channel, mW."""
    drive_vpp_v: float = 2.0
    """Peak to peak drive of a modulator, V."""
    line_ohm: float = 50.0
    """Termination of the modulator's line, ohm."""
    dac_pj: float = 4.0
    """One sample of one DAC, pJ."""
    adc_pj: float = 2.0
    """One conversion of the ADC, pJ."""
    memory_pj: float = 1.0
    """Reading one input or weight sample, pJ."""

    def __post_init__(self) -> None:
        _between(self, "laser_efficiency", 1e-6, 1.0)
        for name in ("loss_db", "bias_mw", "receiver_mw", "drive_vpp_v", "dac_pj", "adc_pj", "memory_pj"):
            _between(self, name, 0.0, 1e6)
        _between(self, "line_ohm", 1e-3, 1e6)


@dataclass(frozen=True)
class CoreConfig:
    """A time-multiplexed core: two modulators in series, balanced detection, charge integration. Source: A2.

    Values x in [0, 1] and w in [-1, 1] are light; scales live in the digital domain. The unit of a result is the MAC
    unit: the charge of one symbol with x = w = 1, `n_e` electrons.
    """

    symbol_rate_hz: float = 60e9
    """Symbols a second of both modulators, above 0."""
    channels: int = 1
    """Weight modulators with a receiver each that share one input stream (and its power), 1 or more."""
    max_fan_in: int = 131072
    """Longest dot product of one integration, 1 or more symbols."""
    tile_fan_in: bool = False
    """Longer dot products are cut into tiles and summed digitally; else they are refused."""
    reset_s: float = 20e-9
    """Discharging a capacitor, 0 or more."""
    hide_reset: bool = True
    """Two capacitors in turn: one resets while the other integrates."""

    power_mw: float = 1.0
    """Light at the detectors for x = 1, all channels together, above 0."""
    responsivity_a_per_w: float = 0.8
    """Of the photodiodes, above 0 to 2."""
    rin_db_per_hz: float = -150.0
    """Relative intensity noise of the laser, -200 to -80."""
    gain_error: float = 0.001
    """Slow relative fluctuation of the gain, common to one integration, standard deviation, 0 to 0.5."""
    dark_current_a: float = 1e-8
    """Of one photodiode, 0 or more."""
    amplifier_a_per_rthz: float = 1e-12
    """Input current noise of the receiver, 0 or more."""
    temperature_k: float = 300.0
    """Of the receiver, above 0."""
    output_noise: float = 0.0
    """Noise added to every result whatever the signal, MAC units, 0 or more."""
    exact_rin: bool = False
    """Fast intensity noise from a second product instead of the mean weight of each neuron; analytic model only."""
    noise: tuple[Term, ...] = ("shot", "dark", "reset", "amplifier", "rin", "gain", "residual")
    """Which terms are on: shot, dark, reset (kT/C), amplifier, rin, gain, residual, output."""

    extinction_db: float = 25.0
    """Bright over dark of a modulator, 4.78 (half of the range can be reached) to inf."""
    v_pi_v: float = 2.0
    """Voltage for a phase of pi, above 0."""
    bandwidth_hz: float = 60e9
    """3 dB bandwidth of a modulator with its driver, above 0 to inf; waveform model only."""
    pre_emphasis: bool = True
    """Drive voltages are corrected for the bandwidth, inside the range of the DAC; waveform model only."""
    headroom: float = 1.0
    """Range of the DACs over what the encoding needs, 1 to 4: room for pre-emphasis, at the price of coarser steps."""
    skew_s: float = 0.0
    """Weight stream late against the input stream, up to half a symbol; waveform model only."""
    bias_error_rad: float = 0.0
    """Phase by which both modulators have drifted from quadrature, -0.5 to 0.5."""
    residual: float = 0.0
    """Relative error of one symbol that calibration leaves, 0 to 0.5; analytic model only."""
    encoding: Encoding = "asin"
    """asin: light is linear in the value; raw: voltage is, so the layer sums sines; linear: no modulator at all."""

    input_bits: int = 8
    """DAC of the inputs: 1 to 16, or 32 for exact."""
    weight_bits: int = 8
    """DAC of the weights: 1 to 16, or 32 for exact."""
    adc_bits: int = 8
    """ADC of the results: 1 to 16, or 32 for exact."""
    stochastic_rounding: bool = False
    """DACs round up with the probability that makes their mean right."""
    input_scale: Scaling = "row"
    """What shares a digital scale: each input vector, or the whole tensor."""
    weight_scale: Scaling = "row"
    """What shares a digital scale: each neuron, or the whole matrix."""
    signs: Signs = "fold"
    """How inputs get a sign: fold (onto the weights), offset, two_pass, field (homodyne)."""

    swing_v: float = 0.5
    """Output voltage of the integrator, either sign, above 0."""
    capacitor_f: float = 0.0
    """Integration capacitor; 0: sized so that full_scale fills swing_v."""
    full_scale: float = 0.0
    """Largest result that is read without clipping, MAC units; 0: range_std deviations of the results."""
    range_std: float = 4.0
    """Full scale in standard deviations of the results; 0: the best for a Gaussian at adc_bits, 2.3 (3) to 3.9 (8)."""
    leak_s: float = 1e-3
    """Time constant by which the charge leaks away, above 0 to inf."""
    leak_correction: bool = True
    """Weights grow towards the start of a window so that the leak cancels exactly."""
    imbalance: float = 0.0
    """Relative difference of the two photodiodes, -0.5 to 0.5; a zero-weight pass measures it."""
    remove_imbalance: bool = True
    """Its effect, as the zero-weight pass finds it, is subtracted digitally."""

    energy: EnergyConfig = field(default_factory=EnergyConfig)

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            _between(self, name, low, high)
        for name in ("input_bits", "weight_bits", "adc_bits"):
            bits = getattr(self, name)
            if bits != int(bits) or not (1 <= bits <= 16 or bits == EXACT_BITS):
                raise OpticsError(f"{name} = {bits} must be 1 to 16, or {EXACT_BITS} for an exact value; 8 is usual")
        kinds = {"encoding": Encoding, "signs": Signs, "input_scale": Scaling, "weight_scale": Scaling}
        for name, known in kinds.items():
            _one_of(name, getattr(self, name), get_args(known))
        for term in self.noise:
            _one_of("noise", term, get_args(Term))
        if self.contrast < 0.5:
            raise OpticsError(
                f"extinction_db = {self.extinction_db:g} leaves {self.contrast:.0%} of the range between dark and "
                f"bright, so most values cannot be encoded; give at least 4.78 (half of the range), 25 is usual"
            )
        if abs(self.skew_s) > 0.5 / self.symbol_rate_hz:
            raise OpticsError(
                f"skew_s = {self.skew_s:g} must be at most half a symbol, here {0.5 / self.symbol_rate_hz:.3g} s"
            )
        if self.capacitor_f and self.swing_limit < 1.0:
            least = self.charge_c / self.swing_v
            raise OpticsError(
                f"capacitor_f = {self.capacitor_f:g} fills up with {self.swing_limit:.2g} of a full-scale symbol, so "
                f"every result would clip; give at least {least:.3g} F (the square root of the fan-in times that "
                f"is usual), or 0 to have it sized from the results"
            )

    @property
    def symbol_s(self) -> float:
        """Duration of a symbol."""
        return 1.0 / self.symbol_rate_hz

    @property
    def contrast(self) -> float:
        """g of A3: 1 is a modulator that gets quite dark."""
        return contrast_of_extinction(self.extinction_db)

    @property
    def n_e(self) -> float:
        """Electrons that a symbol with x = 1 frees in the diodes of one channel: one MAC unit."""
        return self.charge_c / ELEMENTARY_CHARGE_C

    @property
    def charge_c(self) -> float:
        """Charge of one MAC unit."""
        return self.responsivity_a_per_w * 1e-3 * self.power_mw / self.channels * self.symbol_s

    @property
    def swing_limit(self) -> float:
        """Largest result that a given capacitor holds, MAC units; inf when it is sized from the results."""
        return self.capacitor_f * self.swing_v / self.charge_c if self.capacitor_f else _INF

    @property
    def drive_limit_rad(self) -> float:
        """Largest phase that a DAC can ask of a modulator, either sign."""
        return 0.5 * math.pi * self.headroom

    @property
    def isi(self) -> float:
        """Share of the previous symbol in the average of a symbol. Source: A4, first-order stand-in."""
        if math.isinf(self.bandwidth_hz):
            return 0.0
        tau = self.symbol_rate_hz / (2.0 * math.pi * self.bandwidth_hz)  # in symbols
        return tau * (1.0 - math.exp(-1.0 / tau))

    @property
    def rin_per_symbol(self) -> float:
        """Variance of the relative power of a symbol. Source: A6, RIN times half the symbol rate."""
        return ratio_of_db(self.rin_db_per_hz) * self.symbol_rate_hz / 2.0

    @property
    def is_limited(self) -> bool:
        """Whether results have a full scale at all: an ideal core has none."""
        return bool(self.adc_bits != EXACT_BITS or self.full_scale or self.capacitor_f or "reset" in self.noise)

    @property
    def range_deviations(self) -> float:
        """Standard deviations that full scale holds, as given or the best for the ADC."""
        return self.range_std or _BEST_RANGE.get(self.adc_bits, 4.0)

    def capacitance_f(self, full_scale: float) -> float:
        """The capacitor as given, or the one that `full_scale` MAC units fill. Source: A5."""
        return self.capacitor_f or self.charge_c * full_scale / self.swing_v

    def quiet(self) -> "CoreConfig":
        """The same core without noise."""
        return dataclasses.replace(self, noise=())


_BEST_RANGE = {1: 1.6, 2: 1.99, 3: 2.34, 4: 2.68, 5: 3.01, 6: 3.33, 7: 3.64, 8: 3.94}
"""Full scale of a uniform quantiser of 2^bits levels with the least mean square error for a Gaussian (Max 1960)."""

_RANGES: tuple[tuple[str, float, float], ...] = (
    ("symbol_rate_hz", 1e3, 1e13),
    ("channels", 1, 1 << 20),
    ("max_fan_in", 1, 1 << 40),
    ("reset_s", 0.0, 1.0),
    ("power_mw", 1e-12, 1e6),
    ("responsivity_a_per_w", 1e-6, 2.0),
    ("rin_db_per_hz", -200.0, -80.0),
    ("gain_error", 0.0, 0.5),
    ("dark_current_a", 0.0, 1.0),
    ("amplifier_a_per_rthz", 0.0, 1.0),
    ("temperature_k", 1e-3, 1e4),
    ("output_noise", 0.0, 1e9),
    ("v_pi_v", 1e-3, 1e3),
    ("bandwidth_hz", 1e3, _INF),
    ("headroom", 1.0, 4.0),
    ("bias_error_rad", -0.5, 0.5),
    ("residual", 0.0, 0.5),
    ("swing_v", 1e-6, 1e3),
    ("capacitor_f", 0.0, 1.0),
    ("full_scale", 0.0, 1e12),
    ("range_std", 0.0, 1e6),
    ("leak_s", 1e-12, _INF),
    ("imbalance", -0.5, 0.5),
)


def preset_names() -> list[str]:
    """Names that `load_preset` knows."""
    folder = resources.files("isoflop") / "presets" / "optics"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def load_preset(name: str, **changes: Any) -> CoreConfig:
    """The preset called `name`, with fields changed.

    Raises:
        OpticsError: no such preset, no such field, or a value that no core can have.
    """
    _one_of("preset", name, preset_names())
    text = (resources.files("isoflop") / "presets" / "optics" / f"{name}.toml").read_text(encoding="utf-8")
    return core_config({**tomllib.loads(text), **changes})


def core_config(tree: dict[str, Any]) -> CoreConfig:
    """A config of plain data, as a TOML file holds it. Raises OpticsError."""
    energy = tree.get("energy", {})
    known_energy = {f.name for f in dataclasses.fields(EnergyConfig)}
    for key in energy if isinstance(energy, dict) else ():
        _one_of("energy", key, known_energy)
    for key in tree:
        _one_of("field", key, {f.name for f in dataclasses.fields(CoreConfig)})
    values = dict(tree)
    if isinstance(energy, dict):
        values["energy"] = EnergyConfig(**energy)
    if "noise" in values:
        values["noise"] = tuple(values["noise"])
    return CoreConfig(**values)


def _between(config: Any, name: str, low: float, high: float) -> None:
    value = getattr(config, name)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
        prefix = "energy." if isinstance(config, EnergyConfig) else ""
        raise OpticsError(f"{prefix}{name} = {value!r} must be a number from {low:g} to {high:g}")


def _one_of(name: str, value: Any, known: Any) -> None:
    if value not in known:
        near = difflib.get_close_matches(str(value), list(map(str, known)), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise OpticsError(f"{name} = {value!r} must be one of {', '.join(sorted(map(str, known)))}{hint}")
