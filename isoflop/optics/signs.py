"""Four exact ways to multiply signed numbers with light, which has no sign. Source: A8.

fold      |x| on the first modulator, sign(x) w on the second (no weight where x = 0): one window, (-a)(-b) = a b
offset    u = (x + 1)/2, and 2 sum(u w) - sum(w) afterwards: one window, but a large common mode
two_pass  x = x_plus - x_minus in two windows, subtracted after the ADC: twice the time, the noise of both
field     the sign is a phase of the optical field, read with a reference: one window, needs coherence
"""

from torch import Tensor, cat, logical_or

from isoflop.optics.config import CoreConfig, Signs

N_PASSES: dict[str, int] = {"fold": 1, "offset": 1, "two_pass": 2, "field": 1}
"""Windows for one result."""


def largest_input(config: CoreConfig) -> float:
    """Largest |x| that a finite contrast can encode."""
    if config.encoding != "asin" or config.signs == "field":
        return 1.0
    return 0.5 * (1.0 + config.contrast) if config.signs == "fold" else config.contrast


def to_windows(config: CoreConfig, u_MK: Tensor) -> Tensor:
    """Values in [-1, 1] as what the first modulator sends, in [0, 1] (field: unchanged). Shapes: [M or 2M, K]."""
    if config.signs == "fold":
        return u_MK.abs()
    if config.signs == "offset":
        return 0.5 * u_MK + 0.5
    if config.signs == "two_pass":  # darkness leaks through both windows: starting from it, the difference is exact
        dark = 0.5 * (1.0 - config.contrast) if config.encoding == "asin" else 0.0
        return cat([u_MK, -u_MK]).clamp_min(0.0) + dark
    return u_MK


def signed_light(signs: Signs, light_MK: Tensor, u_MK: Tensor) -> Tensor:
    """Light with the sign that `fold` puts onto the weights; overwrites it unless it has a gradient.

    The sign of 0 is 0: where nothing is to be added, no weight is sent, and the light that no modulator can block meets
    none. Else the dark symbols of a sparse input would sum up, and their weights would learn from it.
    """
    if signs != "fold":
        return light_MK
    return light_MK * u_MK.sign() if light_MK.requires_grad else light_MK.mul_(u_MK.sign())


def to_numbers(signs: Signs, light_MK: Tensor) -> Tensor:
    """The signed numbers that encoded light stands for: the inverse of `to_windows`."""
    if signs == "offset":
        return 2.0 * light_MK - 1.0
    if signs == "two_pass":
        plus, minus = light_MK.chunk(2)
        return plus - minus
    return light_MK


def combine(signs: Signs, read_MN: Tensor, weight_sum_N: Tensor | None) -> Tensor:
    """What was read of the windows, as results; `offset` takes the sum of each neuron's weights, known digitally."""
    if signs == "offset" and weight_sum_N is not None:
        return 2.0 * read_MN - weight_sum_N
    if signs == "two_pass":
        plus, minus = read_MN.chunk(2)
        return plus - minus
    return read_MN


def combine_clips(signs: Signs, clipped: Tensor | None) -> Tensor | None:
    """A result is clipped if one of its windows was."""
    return logical_or(*clipped.chunk(2)) if signs == "two_pass" and clipped is not None else clipped
