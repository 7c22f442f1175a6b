"""Constants and conversions; the unit of every name is its suffix. Plain floats, no tensors."""

import math

ELEMENTARY_CHARGE_C = 1.602176634e-19  # exact, SI 2019
BOLTZMANN_J_PER_K = 1.380649e-23  # exact, SI 2019


def ratio_of_db(db: float) -> float:
    """Power ratio of decibels; -inf is 0."""
    return 10.0 ** (db / 10.0)


def contrast_of_extinction(extinction_db: float) -> float:
    """g = (r - 1)/(r + 1): how much of the full swing between dark and bright a modulator reaches. Source: A3."""
    if math.isinf(extinction_db):
        return 1.0
    ratio = ratio_of_db(extinction_db)
    return (ratio - 1.0) / (ratio + 1.0)


def effective_bits(signal_rms: float, error_rms: float) -> float:
    """ENOB: bits of an ideal quantiser, driven by a full-scale sine, with this ratio. Source: A6."""
    if error_rms == 0.0:
        return math.inf
    return (20.0 * math.log10(signal_rms / error_rms) - 1.76) / 6.02 if signal_rms > 0.0 else -math.inf
