"""Remix: how much of training each domain gets, stage by stage, and what repeating small domains costs.

    natural        shares as the text has them
    temperature    share proportional to bytes ** (1 / temperature): 1 is natural, large values approach equal shares
    targets        explicit shares; domains that are not named share the rest as the text has them

A curriculum is a list of stages, each with a part of training and shares of its own. From the shares and the planned
amount of training follow the epochs of each domain, and from those, by the law of repeated data, how much new text
they are worth. The result is plain data: `[data]` of a pretrain recipe takes it as it is.
Source: temperature as in multilingual models (arXiv 1911.02116, section 3.1, alpha = 1 / temperature); repeated data:
arXiv 2305.16264, equation 5. DeepSeek LLM 2.1 raises under-represented domains; its weights are not stated.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from isoflop.corpus.mixture import shares_per_block
from isoflop.errors import RecipeError
from isoflop.recipe import NotNegative, Positive, Share, check_ranges

REPEAT_DECAY = 15.387756  # paper: R* of data, 2305.16264


@dataclass(frozen=True)
class MixStage:
    """One `[[mix.stages]]` entry: a stretch of training with shares of its own."""

    part: Positive
    """Of training, relative to the parts of the other stages; above 0."""
    targets: dict[str, Share] = field(default_factory=dict)
    """Shares of domains in this stage; as `mix.targets`, which they replace."""
    temperature: NotNegative = 0.0
    """Of this stage; 0: `mix.temperature`."""


@dataclass(frozen=True)
class MixOptions:
    """The `[mix]` section of a corpus recipe."""

    temperature: Positive = 1.0
    """Share of a domain ~ bytes ** (1 / temperature); 1: natural proportions."""
    targets: dict[str, Share] = field(default_factory=dict)
    """Explicit shares of training bytes; together at most 1, and exactly 1 if they name every domain."""
    train_gb: NotNegative = 0.0
    """Planned training in GB of text, all passes; 0: one pass over the corpus."""
    max_epochs: NotNegative = 0.0
    """No domain more often than this; what it may not take goes to the others. 0: no limit. Paper: 4 is nearly free."""
    stages: tuple[MixStage, ...] = ()
    """Curriculum; empty: one stage."""


def plan_mixture(n_bytes: Mapping[str, int], options: MixOptions) -> dict[str, Any]:
    """Shares, epochs and worth of every domain, for training on text of these sizes.

    Raises:
        RecipeError: shares of unknown domains, of the wrong sum, or a limit on epochs that cannot be kept.
    """
    check_mixture(options)
    total = sum(n_bytes.values())
    planned = options.train_gb * 1e9 or float(total)
    stages = options.stages or (MixStage(1.0),)
    parts = [stage.part / sum(stage.part for stage in stages) for stage in stages]
    used: dict[str, float] = dict.fromkeys(n_bytes, 0.0)
    rows, start = [], 0.0
    for number, (stage, part) in enumerate(zip(stages, parts, strict=True)):
        where = f"mix.stages[{number}]" if options.stages else "mix"
        targets = stage.targets or options.targets
        wanted = _shares(n_bytes, targets, stage.temperature or options.temperature, where)
        shares = _within_epochs(wanted, n_bytes, used, part * planned, options.max_epochs)
        counts = shares_per_block(shares)
        blocks = sum(counts.values())
        realised = {name: counts.get(name, 0) / blocks for name in n_bytes}
        for name in n_bytes:
            used[name] += realised[name] * part * planned
        rows.append(
            {"start": start, "part": part, "target": wanted, "shares": {k: v for k, v in shares.items() if v > 0}}
            | {"realised": realised}
        )
        start += part
    domains = {name: _worth(size, used[name], planned) for name, size in sorted(n_bytes.items())}
    worth = sum(row["effective_bytes"] for row in domains.values())
    return {
        "planned_bytes": planned,
        "effective_bytes": worth,
        "lost_to_repetition": 1.0 - worth / planned,
        "domains": domains,
        "stages": rows,
    }


def effective_bytes(seen: float, unique: float) -> float:
    """What `seen` bytes of training are worth in new text where only `unique` are different."""
    if seen <= unique:
        return seen
    return unique + unique * REPEAT_DECAY * -math.expm1(-(seen / unique - 1.0) / REPEAT_DECAY)


def mixture_section(plan: Mapping[str, Any]) -> dict[str, Any]:
    """`[data]` of a pretrain recipe: weights of one stage, or the curriculum."""
    stages: Sequence[Mapping[str, Any]] = plan["stages"]
    if len(stages) == 1:
        return {"data": {"weights": stages[0]["shares"]}}
    return {"data": {"curriculum": [{"from_share": s["start"], "weights": s["shares"]} for s in stages]}}


def check_mixture(options: MixOptions) -> None:
    """Raises RecipeError for values that cannot be, whatever the text."""
    check_ranges(options, "mix.")
    named = {"mix": options.targets, **{f"mix.stages[{n}]": stage.targets for n, stage in enumerate(options.stages)}}
    for where, targets in named.items():
        if sum(targets.values()) > 1 + 1e-6:
            raise RecipeError(f"{where}.targets = {targets} must have a sum of at most 1; lower them")


def _shares(
    n_bytes: Mapping[str, int], targets: Mapping[str, float], temperature: float, where: str
) -> dict[str, float]:
    unknown = sorted(set(targets) - set(n_bytes))
    if unknown:
        raise RecipeError(f"{where}.targets.{unknown[0]}: no such domain; there are: {', '.join(sorted(n_bytes))}")
    others = {name: size ** (1.0 / temperature) for name, size in n_bytes.items() if name not in targets}
    rest = 1.0 - sum(targets.values())
    if (not others or not sum(others.values())) and rest > 1e-6:
        raise RecipeError(
            f"{where}.targets = {dict(targets)} name every domain and have the sum {1 - rest:.4g}; make it 1, or leave "
            "a domain out, which then takes the rest"
        )
    shares = {name: rest * size / sum(others.values()) for name, size in others.items()} if others else {}
    return {name: max(0.0, targets.get(name, shares.get(name, 0.0))) for name in sorted(n_bytes)}


def _within_epochs(
    wanted: Mapping[str, float],
    n_bytes: Mapping[str, int],
    used: Mapping[str, float],
    stage_bytes: float,
    max_epochs: float,
) -> dict[str, float]:
    """Shares with no domain above its limit; what is cut goes to the others in proportion."""
    if not max_epochs:
        return dict(wanted)
    most = {name: max(0.0, max_epochs * n_bytes[name] - used[name]) / stage_bytes for name in wanted}
    shares, full = dict(wanted), set[str]()
    while over := [name for name in shares if name not in full and shares[name] > most[name] + 1e-12]:
        full.update(over)
        open_ = {name: wanted[name] for name in shares if name not in full and wanted[name] > 0}
        rest = 1.0 - sum(most[name] for name in full)
        if not open_:
            raise RecipeError(
                f"mix.max_epochs = {max_epochs} leaves {1 - rest:.0%} of the planned training without text; raise it, "
                f"lower mix.train_gb, or give more text"
            )
        scale = rest / sum(open_.values())
        shares = {name: most[name] if name in full else wanted[name] * scale for name in shares}
    return shares


def _worth(size: int, seen: float, planned: float) -> dict[str, float]:
    worth = effective_bytes(seen, size) if size else 0.0
    return {
        "bytes": size,
        "seen_bytes": seen,
        "share": seen / planned,
        "epochs": seen / size if size else 0.0,
        "effective_bytes": worth,
        "lost": 1.0 - worth / seen if seen else 0.0,
    }
