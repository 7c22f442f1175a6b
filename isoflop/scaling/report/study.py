"""What a study says, as plain values: the one reading of records, laws, plan and score that figures and report share.

Records and laws come in as the dicts of their files; a `Study` goes out: cells, diverged runs, budgets and the target.
The one idea: every picture and every sentence of the report is computed from this object, so they cannot disagree.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isoflop.errors import DataError, PlanError
from isoflop.pages.plot import number
from isoflop.scaling.plan.predict import central_constants, law_losses, optimum_losses, predict
from isoflop.scaling.sweep.records import RunRecord

LOSS_LABEL = {"bits_per_byte": "bits per byte", "loss_nats": "loss (nats per token)"}
SCALE_LABEL = {"flops_per_token": "model scale M (FLOPs per token)", "n_params": "model size N (parameters)"}
LAW_LABEL = {
    "surface_log_huber": "surface, log-Huber",
    "surface_varpro": "surface, variable projection",
    "surface_raw_huber": "surface, raw Huber",
    "surface_mse": "surface, least squares",
    "lstar": "L*(C)",
}


@dataclass(frozen=True)
class Target:
    """The run that is predicted. None means: not known (yet)."""

    flops: float | None = None
    scale: float | None = None
    tokens: float | None = None
    predicted: float | None = None
    low: float | None = None
    high: float | None = None
    level: float = 0.9
    measured: float | None = None
    by_law: dict[str, Any] = field(default_factory=dict)
    by_law_interval: dict[str, Any] = field(default_factory=dict)
    unique_tokens: float | None = None


@dataclass(frozen=True)
class Study:
    """Cells that may be fitted, runs that may not, and the laws with the unit they speak."""

    cells: list[dict[str, Any]]
    diverged: list[dict[str, Any]]
    laws: Mapping[str, Any]
    target: Target | None
    loss_key: str
    scale_key: str
    per_token: float
    """C = per_token * scale * tokens: 1 for M (FLOPs per token), 6 for N (parameters)."""
    controls: list[dict[str, Any]] = field(default_factory=list)
    """Cells run once more without a shared trunk."""

    @property
    def budgets(self) -> list[float]:
        return sorted({float(cell["budget_flops"]) for cell in self.cells if number(cell.get("budget_flops"))})

    @property
    def largest_flops(self) -> float | None:
        """Largest compute that any cell of the sweep used."""
        stated = number(self.laws.get("largest_budget_flops"))
        return stated or max((self.flops(cell) for cell in self.cells), default=None)

    def flops(self, cell: Mapping[str, Any]) -> float:
        """Compute of a run under the convention of the laws: counted, never the budget's label."""
        return self.per_token * float(cell[self.scale_key]) * float(cell["n_tokens"])

    def of_budget(self, budget: float) -> list[dict[str, Any]]:
        chosen = [cell for cell in self.tuned if number(cell.get("budget_flops")) == budget]
        return sorted(chosen, key=lambda cell: cell[self.scale_key])

    @property
    def vertices(self) -> list[dict[str, Any]]:
        """Optima of the budgets that may be shown, by compute: {flops, budget, scale, tokens, loss, inside, points}.

        A vertex that the law did not use is left out: far outside the tested sizes its place means nothing.
        """
        found = []
        for vertex in (self.laws.get("parabola") or {}).get("vertices") or []:
            place = [number(vertex.get(key)) for key in ("scale_opt", "tokens_opt", "loss", "budget_flops")]
            if None in place or not vertex.get("used", vertex.get("inside", True)):
                continue
            found.append(
                {
                    "flops": number(vertex.get("total_flops")) or place[3],
                    "budget": place[3],
                    "scale": place[0],
                    "tokens": place[1],
                    "loss": place[2],
                    "inside": vertex.get("inside", True),
                    "points": vertex.get("points") or [],
                }
            )
        return sorted(found, key=lambda vertex: vertex["flops"])

    @property
    def tuned(self) -> list[dict[str, Any]]:
        """Cells without the deliberately mistuned ones: of a learning-rate/batch grid only the best run."""
        dropped = set()
        for _, rows in hyper_settings(self.cells):
            best = min(rows, key=lambda row: row[self.loss_key])
            dropped |= {id(row) for row in rows if row is not best}
        return [cell for cell in self.cells if id(cell) not in dropped]

    @property
    def loss_label(self) -> str:
        return LOSS_LABEL.get(self.loss_key, self.loss_key)

    @property
    def scale_label(self) -> str:
        return SCALE_LABEL.get(self.scale_key, self.scale_key)


def read_study(
    records: Iterable[Any],
    laws: Mapping[str, Any] | None = None,
    plan: Mapping[str, Any] | None = None,
    score: Mapping[str, Any] | None = None,
) -> Study:
    """Sort runs into cells, diverged runs and the target; nothing is dropped without a place.

    Records may be dicts or dataclasses; an imported table without `n_params` uses `n_params_non_embedding`.

    Raises:
        DataError: neither a finished run nor a law was given.
    """
    laws = {"scale": "flops_per_token", **laws} if laws else {}
    rows = [plain_row(record) for record in records]
    scale_key = str(laws.get("scale") or "flops_per_token")
    loss_key = str(laws.get("loss") or "bits_per_byte")
    for row in rows:
        if scale_key == "n_params" and not number(row.get("n_params")):
            row["n_params"] = row.get("n_params_non_embedding") or row.get("n_params_total")
    usable = [row for row in rows if all(number(row.get(key)) for key in (scale_key, "n_tokens", loss_key))]
    finished = [row for row in usable if row.get("status", "finished") == "finished"]
    cells = [row for row in finished if row.get("kind", "cell") not in ("target", "control")]
    if not cells and not laws:
        raise DataError(
            "records hold no finished run with "
            f"{scale_key}, n_tokens and {loss_key}, and no laws were given; run `isoflop sweep` first"
        )
    targets = [row for row in rows if row.get("kind") == "target"]
    return Study(
        cells=cells,
        controls=[row for row in finished if row.get("kind") == "control"],
        diverged=[row for row in rows if row.get("status") == "diverged"],
        laws=laws,
        target=_read_target(targets[-1] if targets else None, plan, score, loss_key, scale_key),
        loss_key=loss_key,
        scale_key=scale_key,
        per_token=6.0 if scale_key == "n_params" else 1.0,
    )


def hyper_settings(cells: Sequence[Mapping[str, Any]]) -> list[tuple[float, list[Mapping[str, Any]]]]:
    """Runs that differ only in learning rate and batch, grouped: (compute, runs), where both take several values."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for cell in cells:
        if number(cell.get("learning_rate")) and number(cell.get("batch_tokens")):
            scale = cell.get("flops_per_token") or cell.get("n_params")
            # Whole steps make achieved tokens differ a little with the batch; the plan says which runs belong together.
            tokens = cell.get("planned_tokens") or cell["n_tokens"]
            groups[(scale, tokens, cell.get("budget_flops"))].append(cell)
    found = []
    for (scale, tokens, _), rows in groups.items():
        rates, batches = ({row[key] for row in rows} for key in ("learning_rate", "batch_tokens"))
        if len(rates) >= 2 and len(batches) >= 2 and len(rows) >= 6:
            found.append((float(scale or 1.0) * float(tokens), rows))
    return found


def power(constants: Sequence[float], flops: Any) -> Any:
    """coefficient * C^exponent."""
    coefficient, exponent = constants
    return coefficient * np.power(flops, exponent)


def law_curves(study: Study, flops: np.ndarray) -> dict[str, np.ndarray]:
    """Loss at the optimal allocation by each law over a grid of compute."""
    constants = {name: values for name, values in central_constants(study.laws).items() if np.isfinite(values).all()}
    if not constants:
        return {}
    return {name: np.asarray(values) for name, values in optimum_losses(study.laws, constants, flops).items()}


def lstar_band(study: Study, flops: np.ndarray, level: float = 0.9) -> tuple[np.ndarray, np.ndarray] | None:
    """Bootstrap band of L*(C) over a grid of compute, or None without resamples."""
    draws = resamples(study.laws, "lstar", 3)
    if not len(draws):
        return None
    losses = optimum_losses(study.laws, {"lstar": draws[:, None, :]}, flops[None, :])
    return band(losses["lstar"], level)


def target_laws(study: Study) -> list[dict[str, Any]]:
    """What each law says about the target: rows {law, label, centre, low, high}.

    The prediction's own values win where it stored them, because they were made before the run; otherwise the laws are
    evaluated here, with the interval of each law's own resamples (parameters only, without the noise of a run).
    """
    target, laws = study.target, study.laws
    constants = {name: values for name, values in central_constants(laws).items() if np.isfinite(values).all()}
    if target is None or not target.flops or not constants:
        return []
    intervals: Mapping[str, Any] = {}
    if target.scale and target.tokens:
        unique = target.unique_tokens if target.unique_tokens and target.unique_tokens < target.tokens else None
        centres = law_losses(laws, constants, target.scale, target.tokens, unique)
        try:
            intervals = predict(
                laws, target.scale, target.tokens, level=target.level, unique_tokens=unique
            ).by_law_interval
        except PlanError:
            intervals = {}  # too few resamples: the centres are shown without intervals
    else:
        centres = optimum_losses(laws, constants, target.flops)
    rows = []
    for law in dict.fromkeys([*target.by_law, *centres]):
        centre = first(target.by_law.get(law), centres.get(law))
        low, high = target.by_law_interval.get(law) or intervals.get(law) or (None, None)
        if centre is not None:
            rows.append({"law": law, "label": LAW_LABEL.get(law, law), "centre": centre, "low": low, "high": high})
    return rows


def resamples(laws: Mapping[str, Any], name: str, width: int) -> np.ndarray:
    """Bootstrap rows of one law; an array (rows, width), with no rows where there are none or they are not finite."""
    rows = (laws.get("resamples") or {}).get(name) or []
    kept = [row for row in rows if row is not None and len(row) == width and all(number(x) is not None for x in row)]
    return np.asarray(kept, dtype=float).reshape(-1, width)


def band(values: np.ndarray, level: float = 0.9) -> tuple[np.ndarray, np.ndarray] | None:
    """Percentile interval along axis 0; None with fewer than 20 rows, where percentiles mean little."""
    if len(values) < 20:
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def plain_row(record: Any) -> dict[str, Any]:
    """A record as a dict of its own, whether it came as a dict or as a dataclass."""
    if isinstance(record, RunRecord):
        return record.to_dict()
    return dict(record) if isinstance(record, Mapping) else dataclasses.asdict(record)


def first(*values: Any) -> float | None:
    """The first of `values` that is a finite number."""
    return next((found for found in map(number, values) if found is not None), None)


def _read_target(
    record: Mapping[str, Any] | None,
    plan: Mapping[str, Any] | None,
    score: Mapping[str, Any] | None,
    loss_key: str,
    scale_key: str,
) -> Target | None:
    """The record's own prediction wins over the plan's: it is the one that was made before the run."""
    if not (record or plan or score):
        return None
    run: Mapping[str, Any] = record or {}
    wish: Mapping[str, Any] = plan or {}
    result: Mapping[str, Any] = score or run.get("score") or {}
    planned: Mapping[str, Any] = wish.get("prediction") or {}
    said: Mapping[str, Any] = run.get("prediction") or planned
    interval = result.get("interval") or [None, None]
    diverged = run.get("status") == "diverged"
    return Target(
        flops=first(
            run.get("total_flops"), result.get("target_flops"), said.get("target_flops"), wish.get("total_flops")
        ),
        scale=first(run.get(scale_key), wish.get("scale"), wish.get(scale_key)),
        tokens=first(run.get("n_tokens"), wish.get("n_tokens")),
        predicted=first(result.get("predicted_bits_per_byte"), said.get(loss_key), said.get("center")),
        low=first(interval[0], said.get("low")),
        high=first(interval[1], said.get("high")),
        level=first(result.get("level"), said.get("level")) or 0.9,
        measured=first(result.get("measured_bits_per_byte"), None if diverged else run.get(loss_key)),
        by_law=dict(said.get("by_law") or planned.get("by_law") or {}),
        by_law_interval=dict(said.get("by_law_interval") or planned.get("by_law_interval") or {}),
        unique_tokens=first(run.get("unique_tokens"), wish.get("unique_tokens")),
    )
