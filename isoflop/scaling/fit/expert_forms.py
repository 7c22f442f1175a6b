"""Forms of scaling laws that know experts, and their published constants: functions and data, no fitting.

A form maps constants and runs to ln loss. Four are known: Clark's bilinear law (size and experts, tokens fixed), the
joint law (size, tokens, experts), the granularity law (size, tokens, how finely experts are cut), and the efficiency
leverage (compute that experts save against a dense family at equal loss).

Symbols: N parameters that one token uses, D tokens, C FLOPs, E experts a token may choose from for every one it uses
((routed + shared) / (active + shared); dense: 1), A = 1 / E the activated share, G granularity (2 d_model / d_expert).
Fits work on centred logarithms (`x`, `y`, `c` of `Runs`), where constants are least collinear; `natural` and
`internal` translate. Shapes: R problems, P constants, S runs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LARGEST_RATIO = 5.28e16
"""A_max of the leverage's saturation (arXiv 2507.17702): so large that its term vanishes; kept as published."""


@dataclass(frozen=True)
class Runs:
    """Rows that a form is evaluated at; a quantity that a form does not use may be empty."""

    n_params: np.ndarray
    n_tokens: np.ndarray
    total_flops: np.ndarray
    n_experts: np.ndarray
    """E as in the module's docstring."""
    granularity: np.ndarray
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Subtracted from ln N, ln D and ln C."""

    @property
    def x(self) -> np.ndarray:
        return np.log(self.n_params) - self.centre[0]

    @property
    def y(self) -> np.ndarray:
        return np.log(self.n_tokens) - self.centre[1]

    @property
    def c(self) -> np.ndarray:
        return np.log(self.total_flops) - self.centre[2]


@dataclass(frozen=True)
class Form:
    """One law: what it needs, its constants in their published order, and how to evaluate and fit it."""

    name: str
    formula: str
    needs: tuple[str, ...]
    """Names of `Runs` that must be known."""
    constants: tuple[str, ...]
    log_loss: Callable[[np.ndarray, Runs], np.ndarray]
    """Internal constants (R, P) -> ln loss (R, S); analytic, so that complex steps differentiate it."""
    natural: Callable[[np.ndarray, tuple[float, float, float]], np.ndarray]
    """Internal (R, P) -> constants as published (R, P)."""
    internal: Callable[[np.ndarray, tuple[float, float, float]], np.ndarray]
    """The inverse."""
    lower: tuple[float, ...]
    """Bounds of the internal constants (assumptions: wider than anything published)."""
    upper: tuple[float, ...]


def saturated(n_experts: Any, ln_start: Any, ln_span: Any) -> Any:
    """E^: experts with saturation at both ends; 1/E^ = 1/(E - 1 + 1/(1/s - 1/m)) + 1/m, s = E_start, m = E_max.

    `ln_span` is ln(E_max / E_start), so that E_max is always the larger. E = 1 gives E_start. Source: Clark et al.,
    arXiv 2202.01169; the same transform is in arXiv 2502.05172.
    """
    start, inverse_span = np.exp(ln_start), np.exp(-ln_span)
    return 1 / (1 / (n_experts - 1 + start / (1 - inverse_span)) + inverse_span / start)


def _columns(theta: np.ndarray) -> list[np.ndarray]:
    return [theta[:, [index]] for index in range(theta.shape[1])]


def _shifted(theta: np.ndarray, changes: Mapping[int, np.ndarray]) -> np.ndarray:
    found = np.array(theta)
    for index, values in changes.items():
        found[:, index] = values
    return found


def _clark(theta: np.ndarray, runs: Runs) -> np.ndarray:
    a, b, c, d, ln_start, ln_span = _columns(theta)
    x, e = runs.x / np.log(10), np.log(saturated(runs.n_experts, ln_start, ln_span)) / np.log(10)
    return (a * x + b * e + c * x * e + d) * np.log(10)


def _clark_shift(theta: np.ndarray, centre: tuple[float, float, float], sign: int) -> np.ndarray:
    m = centre[0] / np.log(10)
    return _shifted(theta, {1: theta[:, 1] - sign * theta[:, 2] * m, 3: theta[:, 3] - sign * theta[:, 0] * m})


def _ends(found: np.ndarray, index: int) -> np.ndarray:
    """E_start and E_max from their internal logarithms."""
    return _shifted(found, {index: np.exp(found[:, index]), index + 1: np.exp(found[:, index] + found[:, index + 1])})


def _ln_ends(given: np.ndarray, index: int) -> np.ndarray:
    return _shifted(given, {index: np.log(given[:, index]), index + 1: np.log(given[:, index + 1] / given[:, index])})


CLARK = Form(
    "clark",
    "log10 L = a log10 N + b log10 E^ + c log10 N log10 E^ + d",
    ("n_params", "n_experts"),
    ("a", "b", "c", "d", "E_start", "E_max"),
    _clark,
    natural=lambda theta, centre: _ends(_clark_shift(theta, centre, 1), 4),
    internal=lambda given, centre: _ln_ends(_clark_shift(given, centre, -1), 4),
    lower=(-2.0, -2.0, -1.0, -20.0, -2.0, 0.1),
    upper=(0.0, 1.0, 1.0, 20.0, 4.0, 14.0),
)


def _joint(theta: np.ndarray, runs: Runs) -> np.ndarray:
    ln_a, delta, alpha, gamma, ln_b, omega, beta, zeta, ln_c, ln_start, ln_span = _columns(theta)
    e = np.log(saturated(runs.n_experts, ln_start, ln_span))
    size = np.exp(ln_a + delta * e + (alpha + gamma * e) * runs.x)
    data = np.exp(ln_b + omega * e + (beta + zeta * e) * runs.y)
    return np.log(size + data + np.exp(ln_c))


def _joint_natural(theta: np.ndarray, centre: tuple[float, float, float]) -> np.ndarray:
    mx, my, _ = centre
    found = _shifted(
        theta,
        {
            0: np.exp(theta[:, 0] - theta[:, 2] * mx),
            1: theta[:, 1] - theta[:, 3] * mx,
            4: np.exp(theta[:, 4] - theta[:, 6] * my),
            5: theta[:, 5] - theta[:, 7] * my,
            8: np.exp(theta[:, 8]),
        },
    )
    return _ends(found, 9)


def _joint_internal(given: np.ndarray, centre: tuple[float, float, float]) -> np.ndarray:
    mx, my, _ = centre
    found = _shifted(
        given,
        {
            0: np.log(given[:, 0]) + given[:, 2] * mx,
            1: given[:, 1] + given[:, 3] * mx,
            4: np.log(given[:, 4]) + given[:, 6] * my,
            5: given[:, 5] + given[:, 7] * my,
            8: np.log(given[:, 8]),
        },
    )
    return _ln_ends(found, 9)


JOINT = Form(
    "joint",
    "L = a E^^delta N^(alpha + gamma ln E^) + b E^^omega D^(beta + zeta ln E^) + c",
    ("n_params", "n_tokens", "n_experts"),
    ("a", "delta", "alpha", "gamma", "b", "omega", "beta", "zeta", "c", "E_start", "E_max"),
    _joint,
    _joint_natural,
    _joint_internal,
    lower=(-12.0, -3.0, -2.0, -0.5, -12.0, -3.0, -2.0, -0.5, -12.0, -2.0, 0.1),
    upper=(12.0, 3.0, -0.01, 0.5, 12.0, 3.0, -0.01, 0.5, 3.0, 4.0, 14.0),
)


def _granular(theta: np.ndarray, runs: Runs) -> np.ndarray:
    ln_a, ln_g, gamma, alpha, ln_b, beta, ln_c = _columns(theta)
    cut = np.exp(ln_g - gamma * np.log(runs.granularity)) + np.exp(ln_a)
    return np.log(cut * np.exp(-alpha * runs.x) + np.exp(ln_b - beta * runs.y) + np.exp(ln_c))


def _granular_shift(ln_like: np.ndarray, centre: tuple[float, float, float], sign: int) -> np.ndarray:
    size, data = sign * ln_like[:, 3] * centre[0], sign * ln_like[:, 5] * centre[1]
    return _shifted(ln_like, {0: ln_like[:, 0] + size, 1: ln_like[:, 1] + size, 4: ln_like[:, 4] + data})


def _granular_natural(theta: np.ndarray, centre: tuple[float, float, float]) -> np.ndarray:
    found = _granular_shift(theta, centre, 1)
    return _shifted(found, {index: np.exp(found[:, index]) for index in (0, 1, 4, 6)})


def _granular_internal(given: np.ndarray, centre: tuple[float, float, float]) -> np.ndarray:
    return _granular_shift(_shifted(given, {i: np.log(given[:, i]) for i in (0, 1, 4, 6)}), centre, -1)


GRANULARITY = Form(
    "granularity",
    "L = c + (g / G^gamma + a) / N^alpha + b / D^beta, at one number of experts",
    ("n_params", "n_tokens", "granularity"),
    ("a", "g", "gamma", "alpha", "b", "beta", "c"),
    _granular,
    _granular_natural,
    _granular_internal,
    lower=(-12.0, -12.0, 0.02, 0.01, -12.0, 0.01, -12.0),
    upper=(12.0, 12.0, 4.0, 2.0, 12.0, 2.0, 3.0),
)


def leverage_exponent(a0: Any, a1: Any, gamma: Any, beta: Any, granularity: np.ndarray, log10_flops: np.ndarray) -> Any:
    """Exponent of A^ in the leverage: a0 + a1 log10 C + gamma g^2 + beta g with g = log2 G."""
    g = np.log2(granularity)
    return a0 + a1 * log10_flops + gamma * g**2 + beta * g


def saturated_share(share: Any, start: Any) -> Any:
    """A^: 1/A^ = 1/(A + 1/(1/start - 1/max)) + 1/max; with the published max simply A + start."""
    return 1 / (1 / (share + 1 / (1 / start - 1 / LARGEST_RATIO)) + 1 / LARGEST_RATIO)


def _leverage(theta: np.ndarray, runs: Runs) -> np.ndarray:
    ln_e, ln_k, g, a0, a1, gamma, beta, ln_start = _columns(theta)
    mixture = runs.n_experts > 1 + 1e-9
    exponent = leverage_exponent(a0, a1, gamma, beta, np.where(mixture, runs.granularity, 1.0), runs.c / np.log(10))
    ln_leverage = exponent * np.log(saturated_share(1 / runs.n_experts, np.exp(ln_start))) * mixture
    return np.log(np.exp(ln_e) + np.exp(ln_k - g * (runs.c + ln_leverage)))


def _leverage_natural(theta: np.ndarray, centre: tuple[float, float, float]) -> np.ndarray:
    m = centre[2]
    changes = {0: np.exp(theta[:, 0]), 1: np.exp(theta[:, 1] + theta[:, 2] * m)}
    changes |= {3: theta[:, 3] - theta[:, 4] * m / np.log(10), 7: np.exp(theta[:, 7])}
    return _shifted(theta, changes)


def _leverage_internal(given: np.ndarray, centre: tuple[float, float, float]) -> np.ndarray:
    m = centre[2]
    changes = {0: np.log(given[:, 0]), 1: np.log(given[:, 1]) - given[:, 2] * m}
    changes |= {3: given[:, 3] + given[:, 4] * m / np.log(10), 7: np.log(given[:, 7])}
    return _shifted(given, changes)


LEVERAGE = Form(
    "leverage",
    "L = E + k (C EL)^-g at the best size; EL = A^^(a0 + a1 log10 C + gamma g^2 + beta g), g = log2 G; dense: EL = 1",
    ("total_flops", "n_experts", "granularity"),
    ("E", "k", "g", "a0", "a1", "gamma", "beta", "A_start"),
    _leverage,
    _leverage_natural,
    _leverage_internal,
    lower=(-12.0, -12.0, 0.005, -5.0, -1.0, -0.5, -2.0, -9.0),
    upper=(3.0, 12.0, 1.5, 5.0, 1.0, 0.5, 2.0, 0.0),
)

FORMS: dict[str, Form] = {form.name: form for form in (CLARK, JOINT, GRANULARITY, LEVERAGE)}


@dataclass(frozen=True)
class PublishedForm:
    """Constants of a form as someone published them."""

    name: str
    form: Form
    constants: dict[str, float]
    """By name; of the leverage only what the source states (its dense law is of other data)."""
    source: str
    grade: str
    """data, consistent, read or memory, as in isoflop.scaling.published."""
    counts: str

    def loss(self, runs: Runs) -> np.ndarray:
        """Loss in nats per token, shape S. Not for the leverage, which compares and does not predict."""
        given = np.array([[self.constants[name] for name in self.form.constants]])
        return np.exp(self.form.log_loss(self.form.internal(given, runs.centre), runs)[0])


def _published(name: str, form: Form, values: Sequence[float], **rest: str) -> PublishedForm:
    return PublishedForm(name, form, dict(zip(form.constants, values, strict=True)), **rest)


PUBLISHED_FORMS: dict[str, PublishedForm] = {
    law.name: law
    for law in (
        _published(
            "clark_sbase",
            CLARK,
            (-0.082, -0.108, 0.009, 1.104, 1.85, 314.0),
            source="Clark et al., arXiv 2202.01169, S-Base",
            grade="memory",
            counts="N of one token; 130B tokens fixed; one active expert in every other block",
        ),
        _published(
            "clark_rl_r",
            CLARK,
            (-0.083, -0.126, 0.012, 1.111, 1.88, 470.0),
            source="Clark et al., arXiv 2202.01169, RL-R",
            grade="memory",
            counts="as clark_sbase",
        ),
        _published(
            "joint",
            JOINT,
            # Sources at hand lost signs. These are the ones by which experts help at all, tokens per parameter grow
            # with experts, and the paper's rule of thumb comes out (tests/scaling/test_expert_laws.py).
            (35.91, -0.2285, -0.1889, 0.0098, 35.98, 0.5529, -0.1775, -0.0259, 1.3637, 2.0732, 290.4521),
            source="joint law of experts, arXiv 2502.05172 (signs restored; E_start and E_max from memory)",
            grade="consistent",
            counts="active parameters; C = 6 N D; one active expert",
        ),
        _published(
            "granularity",
            GRANULARITY,
            (18.1, 2.1, 0.58, 0.115, 30.8, 0.147, 0.47),
            source="Krajewski et al., arXiv 2402.07871",
            grade="memory",
            counts="64 times the dense parameters, all counted without embedding",
        ),
        PublishedForm(
            "ling_leverage",
            LEVERAGE,
            {"a0": 1.23, "a1": -0.0761, "gamma": 0.0167, "beta": -0.117, "A_start": 0.0163},
            source="efficiency leverage, Ling, arXiv 2507.17702",
            grade="read",
            counts="C = M D with active FLOPs; A with shared experts; G = 2 d_model / d_expert",
        ),
    )
}
"""Published laws of experts by name."""
