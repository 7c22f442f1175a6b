"""How long a layer takes: windows, tiles, passes, resets. Source: A10."""

import math
from dataclasses import dataclass

from isoflop.optics.config import CoreConfig, OpticsError
from isoflop.optics.signs import N_PASSES


@dataclass(frozen=True)
class Schedule:
    """A layer of fan_out dot products over fan_in symbols on one core. `gops` counts a multiply and an add a symbol."""

    fan_in: int
    fan_out: int
    tiles: int
    passes: int
    windows: int
    integration_s: float
    window_s: float
    layer_s: float
    gops: float
    peak_gops: float
    adc_rate_hz: float
    weight_updates_per_s: float


def schedule(config: CoreConfig, fan_in: int, fan_out: int = 1) -> Schedule:
    """The plan of one matrix-vector product.

    Two capacitors in turn hide the reset as long as it is shorter than a window.

    Raises:
        OpticsError: sizes below 1, or fan-in beyond the limit without tiling.
    """
    for name, value in (("fan_in", fan_in), ("fan_out", fan_out)):
        if value < 1:
            raise OpticsError(f"{name} = {value} must be 1 or more")
    tiles = math.ceil(fan_in / config.max_fan_in)
    if tiles > 1 and not config.tile_fan_in:
        raise OpticsError(
            f"fan_in = {fan_in} is beyond max_fan_in = {config.max_fan_in}; give at most {config.max_fan_in}, or "
            f"tile_fan_in = true to cut it into {tiles} tiles that are summed digitally"
        )
    sizes = [config.max_fan_in] * (tiles - 1) + [fan_in - config.max_fan_in * (tiles - 1)]
    integration_s = [size * config.symbol_s for size in sizes]
    if config.hide_reset:
        window_s = [max(time_s, config.reset_s) for time_s in integration_s]
    else:
        window_s = [time_s + config.reset_s for time_s in integration_s]
    passes = N_PASSES[config.signs]
    rounds = math.ceil(fan_out / config.channels) * passes
    layer_s = rounds * sum(window_s)
    return Schedule(
        fan_in=fan_in,
        fan_out=fan_out,
        tiles=tiles,
        passes=passes,
        windows=fan_out * passes * tiles,
        integration_s=integration_s[0],
        window_s=window_s[0],
        layer_s=layer_s,
        gops=2e-9 * fan_in * fan_out / layer_s,
        peak_gops=2e-9 * config.symbol_rate_hz * config.channels,
        adc_rate_hz=1.0 / window_s[0],
        weight_updates_per_s=config.symbol_rate_hz * config.channels,
    )
