"""Forms of scaling laws that know experts, and their published constants: functions and data, no fitting.

A form maps constants and runs to ln loss. Four are known: Clark's bilinear law (size and experts, tokens fixed), the
joint law (size, tokens, experts), the granularity law (size, tokens, how finely experts are cut), and the efficiency
leverage (compute that experts save against a dense family at equal loss).

Symbols: N parameters that one token uses, D tokens, C FLOPs, E experts a token may choose from for every one it uses
((routed + shared) / (active + shared); dense: 1), A = 1 / E the activated share, G granularity (2 d_model / d_expert).
Fits work on centred logarithms (`x`, `y`, `c` of `Runs`), where constants are least collinear; `natural` and
`internal` translate. Shapes: R problems, P constants, S runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Centre = tuple[float, float, float]
"""Means of ln N, ln D and ln C."""
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
    centre: Centre = (0.0, 0.0, 0.0)
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
    recentre: Callable[[np.ndarray, Centre, int], None]
    """Moves internal constants in place: from centred logarithms to plain ones (sign 1), or back (-1)."""
    logs: tuple[str, ...]
    """Constants that are fitted as logarithms; of E_max that of E_max / E_start."""
    lower: tuple[float, ...]
    """Bounds of the internal constants (assumptions: wider than anything published)."""
    upper: tuple[float, ...]

    def natural(self, theta: np.ndarray, centre: Centre) -> np.ndarray:
        """Internal (R, P) -> constants as published (R, P)."""
        found = np.array(theta)
        self.recentre(found, centre, 1)
        if "E_max" in self.logs:
            end = self.constants.index("E_max")
            found[:, end] += found[:, end - 1]
        for index in map(self.constants.index, self.logs):
            found[:, index] = np.exp(found[:, index])
        return found

    def internal(self, given: np.ndarray, centre: Centre) -> np.ndarray:
        """The inverse."""
        found = np.array(given)
        if "E_max" in self.logs:
            end = self.constants.index("E_max")
            found[:, end] /= found[:, end - 1]
        for index in map(self.constants.index, self.logs):
            found[:, index] = np.log(found[:, index])
        self.recentre(found, centre, -1)
        return found


def saturated(n_experts: Any, ln_start: Any, ln_span: Any) -> Any:
    """E^: experts with saturation at both ends; 1/E^ = 1/(E - 1 + 1/(1/s - 1/m)) + 1/m, s = E_start, m = E_max.

    `ln_span` is ln(E_max / E_start), so that E_max is always the larger. E = 1 gives E_start. Source: Clark et al.,
    arXiv 2202.01169; the same transform is in arXiv 2502.05172.
    """
    start, inverse_span = np.exp(ln_start), np.exp(-ln_span)
    return 1 / (1 / (n_experts - 1 + start / (1 - inverse_span)) + inverse_span / start)


def _columns(theta: np.ndarray) -> list[np.ndarray]:
    return [theta[:, [index]] for index in range(theta.shape[1])]


def _clark(theta: np.ndarray, runs: Runs) -> np.ndarray:
    a, b, c, d, ln_start, ln_span = _columns(theta)
    x, e = runs.x / np.log(10), np.log(saturated(runs.n_experts, ln_start, ln_span)) / np.log(10)
    return (a * x + b * e + c * x * e + d) * np.log(10)


def _recentre_clark(theta: np.ndarray, centre: Centre, sign: int) -> None:
    theta[:, [1, 3]] -= sign * theta[:, [2, 0]] * (centre[0] / np.log(10))


CLARK = Form(
    "clark",
    "log10 L = a log10 N + b log10 E^ + c log10 N log10 E^ + d",
    ("n_params", "n_experts"),
    ("a", "b", "c", "d", "E_start", "E_max"),
    _clark,
    _recentre_clark,
    logs=("E_start", "E_max"),
    lower=(-2.0, -2.0, -1.0, -20.0, -2.0, 0.1),
    upper=(0.0, 1.0, 1.0, 20.0, 4.0, 14.0),
)


def _joint(theta: np.ndarray, runs: Runs) -> np.ndarray:
    ln_a, delta, alpha, gamma, ln_b, omega, beta, zeta, ln_c, ln_start, ln_span = _columns(theta)
    e = np.log(saturated(runs.n_experts, ln_start, ln_span))
    size = np.exp(ln_a + delta * e + (alpha + gamma * e) * runs.x)
    data = np.exp(ln_b + omega * e + (beta + zeta * e) * runs.y)
    return np.log(size + data + np.exp(ln_c))


def _recentre_joint(theta: np.ndarray, centre: Centre, sign: int) -> None:
    theta[:, [0, 1]] -= sign * theta[:, [2, 3]] * centre[0]
    theta[:, [4, 5]] -= sign * theta[:, [6, 7]] * centre[1]


JOINT = Form(
    "joint",
    "L = a E^^delta N^(alpha + gamma ln E^) + b E^^omega D^(beta + zeta ln E^) + c",
    ("n_params", "n_tokens", "n_experts"),
    ("a", "delta", "alpha", "gamma", "b", "omega", "beta", "zeta", "c", "E_start", "E_max"),
    _joint,
    _recentre_joint,
    logs=("a", "b", "c", "E_start", "E_max"),
    lower=(-12.0, -3.0, -2.0, -0.5, -12.0, -3.0, -2.0, -0.5, -12.0, -2.0, 0.1),
    upper=(12.0, 3.0, -0.01, 0.5, 12.0, 3.0, -0.01, 0.5, 3.0, 4.0, 14.0),
)


def _granular(theta: np.ndarray, runs: Runs) -> np.ndarray:
    ln_a, ln_g, gamma, alpha, ln_b, beta, ln_c = _columns(theta)
    cut = np.exp(ln_g - gamma * np.log(runs.granularity)) + np.exp(ln_a)
    return np.log(cut * np.exp(-alpha * runs.x) + np.exp(ln_b - beta * runs.y) + np.exp(ln_c))


def _recentre_granular(theta: np.ndarray, centre: Centre, sign: int) -> None:
    theta[:, [0, 1]] += sign * theta[:, [3]] * centre[0]
    theta[:, 4] += sign * theta[:, 5] * centre[1]


GRANULARITY = Form(
    "granularity",
    "L = c + (g / G^gamma + a) / N^alpha + b / D^beta, at one number of experts",
    ("n_params", "n_tokens", "granularity"),
    ("a", "g", "gamma", "alpha", "b", "beta", "c"),
    _granular,
    _recentre_granular,
    logs=("a", "g", "b", "c"),
    lower=(-12.0, -12.0, 0.02, 0.01, -12.0, 0.01, -12.0),
    upper=(12.0, 12.0, 4.0, 2.0, 12.0, 2.0, 3.0),
)


def leverage_exponent(a0: Any, a1: Any, gamma: Any, beta: Any, granularity: Any, log10_flops: Any) -> Any:
    """Exponent of A^ in the leverage: a0 + a1 log10 C + gamma g^2 + beta g with g = log2 G."""
    g = np.log2(granularity)
    return a0 + a1 * log10_flops + gamma * g**2 + beta * g


def saturated_share(share: Any, start: Any) -> Any:
    """A^: 1/A^ = 1/(A + 1/(1/start - 1/max)) + 1/max; with the published max simply A + start."""
    return 1 / (1 / (share + 1 / (1 / start - 1 / LARGEST_RATIO)) + 1 / LARGEST_RATIO)


def leverage_at(constants: Any, share: Any, granularity: Any, total_flops: Any) -> np.ndarray:
    """EL, compute saved by experts, by a0, a1, gamma, beta and A_start, shape (..., 5)."""
    a0, a1, gamma, beta, start = np.moveaxis(np.asarray(constants, dtype=float), -1, 0)
    exponent = leverage_exponent(a0, a1, gamma, beta, granularity, np.log10(total_flops))
    return np.exp(exponent * np.log(saturated_share(share, start)))


def _leverage(theta: np.ndarray, runs: Runs) -> np.ndarray:
    ln_e, ln_k, g, a0, a1, gamma, beta, ln_start = _columns(theta)
    mixture = runs.n_experts > 1 + 1e-9
    exponent = leverage_exponent(a0, a1, gamma, beta, np.where(mixture, runs.granularity, 1.0), runs.c / np.log(10))
    ln_leverage = exponent * np.log(saturated_share(1 / runs.n_experts, np.exp(ln_start))) * mixture
    return np.log(np.exp(ln_e) + np.exp(ln_k - g * (runs.c + ln_leverage)))


def _recentre_leverage(theta: np.ndarray, centre: Centre, sign: int) -> None:
    theta[:, 1] += sign * theta[:, 2] * centre[2]
    theta[:, 3] -= sign * theta[:, 4] * centre[2] / np.log(10)


LEVERAGE = Form(
    "leverage",
    "L = E + k (C EL)^-g at the best size; EL = A^^(a0 + a1 log10 C + gamma g^2 + beta g), g = log2 G; dense: EL = 1",
    ("total_flops", "n_experts", "granularity"),
    ("E", "k", "g", "a0", "a1", "gamma", "beta", "A_start"),
    _leverage,
    _recentre_leverage,
    logs=("E", "k", "A_start"),
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
            # with experts, and the paper's rule of thumb comes out (tests/scaling/fit/test_expert_laws.py).
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
