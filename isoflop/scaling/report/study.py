"""What a study says, as plain values: the one reading of records, laws, plan and score that figures and report share.

Records and laws come in; a `Study` goes out: cells, diverged runs, budgets and the target.
The one idea: every picture and every sentence of the report is computed from this object, so they cannot disagree.
"""

import contextlib
import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isoflop.errors import DataError, PlanError
from isoflop.pages.plot import number
from isoflop.scaling.laws import FLOPS_FACTOR, Allocation, Laws, Vertex
from isoflop.scaling.plan.predict import predict
from isoflop.scaling.published import LawsSource, load_laws
from isoflop.scaling.sweep.records import RunRecord

Json = Mapping[str, Any]
"""A file that another stage wrote: plan, score, manifest, or a line of metrics."""
LEVEL = 0.9
"""Of the bands that are drawn."""
Band = tuple[np.ndarray, np.ndarray]
"""Low and high."""
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
    by_law: dict[str, float] = field(default_factory=dict)
    by_law_interval: dict[str, Sequence[float]] = field(default_factory=dict)
    unique_tokens: float | None = None
    curve: Json = field(default_factory=dict)
    """Its predicted loss over its steps, `[prediction.curve]` of the plan."""


@dataclass(frozen=True)
class LawAtTarget:
    """What one law says about the target."""

    law: str
    centre: float
    low: float | None
    high: float | None

    @property
    def label(self) -> str:
        return LAW_LABEL.get(self.law, self.law)


@dataclass(frozen=True)
class Study:
    """Cells that may be fitted, runs that may not, and the laws with the unit they speak."""

    cells: list[RunRecord]
    diverged: list[RunRecord]
    laws: Laws | None
    target: Target | None
    loss_key: str
    scale_key: str
    controls: list[RunRecord] = field(default_factory=list)
    """Cells run once more without a shared trunk."""
    failed: list[RunRecord] = field(default_factory=list)
    """Cells that could not be run."""

    @property
    def per_token(self) -> float:
        """C = per_token * scale * tokens: 1 for M (FLOPs per token), 6 for N (parameters)."""
        return FLOPS_FACTOR[self.scale_key]

    @property
    def allocation(self) -> Allocation | None:
        return self.laws.allocation if self.laws else None

    @property
    def budgets(self) -> list[float]:
        return sorted({float(cell.budget_flops) for cell in self.cells if number(cell.budget_flops)})  # type: ignore[arg-type]

    @property
    def largest_flops(self) -> float | None:
        """Largest compute that any cell of the sweep used."""
        stated = self.laws and self.laws.largest_budget_flops
        return stated or max((self.flops(cell) for cell in self.cells), default=None)

    def scale(self, cell: RunRecord) -> float:
        """Model scale in the measure of the laws; of an imported table without it, the parameters that it has."""
        if self.scale_key == "flops_per_token":
            return cell.flops_per_token or math.nan
        given = (cell.extra.get("n_params"), cell.n_params_non_embedding, cell.n_params_total)
        return next((found for value in given if (found := number(value))), math.nan)

    def loss(self, cell: RunRecord) -> float:
        found = number(getattr(cell, self.loss_key, None))
        return math.nan if found is None else found

    def flops(self, cell: RunRecord) -> float:
        """Compute of a run under the convention of the laws: counted, never the budget's label."""
        return self.per_token * float(self.scale(cell)) * float(cell.n_tokens or math.nan)

    def usable(self, cell: RunRecord) -> bool:
        """Whether it has all that a figure needs."""
        return all(number(value) for value in (self.scale(cell), cell.n_tokens, self.loss(cell)))

    def of_budget(self, budget: float) -> list[RunRecord]:
        return sorted((cell for cell in self.tuned if number(cell.budget_flops) == budget), key=self.scale)

    @property
    def vertices(self) -> list[Vertex]:
        """Optima of the budgets that may be shown, by compute.

        A vertex that the law did not use is left out: far outside the tested sizes its place means nothing.
        """
        found = self.allocation.vertices if self.allocation else ()
        places = {id(v): (v.scale_opt, v.tokens_opt, v.loss, v.budget_flops) for v in found}
        shown = [v for v in found if v.used and None not in map(number, places[id(v)])]
        return sorted(shown, key=lambda vertex: vertex.total_flops)

    @property
    def tuned(self) -> list[RunRecord]:
        """Cells without the deliberately mistuned ones: of a learning-rate/batch grid only the best run."""
        dropped = set()
        for _, rows in hyper_settings(self.cells):
            best = min(rows, key=self.loss)
            dropped |= {id(row) for row in rows if row is not best}
        return [cell for cell in self.cells if id(cell) not in dropped]

    @property
    def loss_label(self) -> str:
        return LOSS_LABEL.get(self.loss_key, self.loss_key)

    @property
    def scale_label(self) -> str:
        return SCALE_LABEL.get(self.scale_key, self.scale_key)


def read_study(
    records: Iterable[RunRecord | Json],
    laws: LawsSource | None = None,
    plan: Json | None = None,
    score: Json | None = None,
) -> Study:
    """Sort runs into cells, diverged runs and the target; nothing is dropped without a place.

    Raises:
        DataError: neither a finished run nor a law was given.
    """
    rows = list(map(as_record, records))
    known = load_laws(laws) if laws else None
    scale_key, loss_key = (known.scale, known.loss) if known else ("flops_per_token", "bits_per_byte")
    study = Study([], [], known, None, loss_key, scale_key)
    finished = [row for row in rows if study.usable(row) and row.status == "finished"]
    cells = [row for row in finished if row.kind not in ("target", "control")]
    if not cells and not known:
        raise DataError(
            "records hold no finished run with "
            f"{scale_key}, n_tokens and {loss_key}, and no laws were given; run `isoflop sweep` first"
        )
    targets = [row for row in rows if row.kind == "target"]
    return dataclasses.replace(
        study,
        cells=cells,
        controls=[row for row in finished if row.kind == "control"],
        diverged=[row for row in rows if row.status == "diverged"],
        failed=[row for row in rows if row.status == "failed"],
        target=_read_target(targets[-1] if targets else None, plan, score, study),
    )


def hyper_settings(cells: Sequence[RunRecord]) -> list[tuple[float, list[RunRecord]]]:
    """Runs that differ only in learning rate and batch, grouped: (compute, runs), where both take several values."""
    groups: dict[tuple[float, ...], list[RunRecord]] = defaultdict(list)
    for cell in cells:
        if number(cell.learning_rate) and number(cell.batch_tokens):
            scale = cell.flops_per_token or cell.extra.get("n_params") or cell.n_params_non_embedding or 1.0
            # Whole steps make achieved tokens differ a little with the batch; the plan says which runs belong together.
            tokens = cell.planned_tokens or cell.n_tokens or math.nan
            groups[scale, tokens, cell.budget_flops or 0.0].append(cell)
    found = []
    for (scale, tokens, _), rows in groups.items():
        rates, batches = {row.learning_rate for row in rows}, {row.batch_tokens for row in rows}
        if len(rates) >= 2 and len(batches) >= 2 and len(rows) >= 6:
            found.append((float(scale) * float(tokens), rows))
    return found


def law_curves(study: Study, flops: np.ndarray) -> dict[str, np.ndarray]:
    """Loss at the optimal allocation by each law over a grid of compute."""
    if study.laws is None:
        return {}
    return {name: np.asarray(v) for name, v in study.laws.optimum_losses(_constants(study.laws), flops).items()}


def lstar_band(study: Study, flops: np.ndarray) -> Band | None:
    """Of L*(C) over a grid of compute, or None without resamples."""
    draws = resamples(study, "lstar")
    if study.laws is None or not len(draws):
        return None
    return band(study.laws.optimum_losses({"lstar": draws[:, None, :]}, flops[None, :])["lstar"])


def allocation_band(study: Study, letter: str, flops: np.ndarray) -> Band | None:
    """Of the optimal scale ("n") or tokens ("d") over a grid of compute, or None without resamples."""
    rows = resamples(study, f"{letter}_allocation")
    return band(rows[:, :1] * flops[None, :] ** rows[:, 1:])


def target_laws(study: Study) -> list[LawAtTarget]:
    """What each law says about the target.

    The prediction's own values win where it stored them, because they were made before the run; otherwise the laws are
    evaluated here, with the interval of each law's own resamples (parameters only, without the noise of a run).
    """
    target, laws = study.target, study.laws
    if target is None or not target.flops or laws is None or not (constants := _constants(laws)):
        return []
    intervals: Mapping[str, Sequence[float]] = {}
    if target.scale and target.tokens:
        unique = target.unique_tokens if target.unique_tokens and target.unique_tokens < target.tokens else None
        centres = laws.losses(constants, target.scale, target.tokens, unique)
        with contextlib.suppress(PlanError):  # too few resamples: the centres are shown without intervals
            intervals = predict(
                laws, target.scale, target.tokens, level=target.level, unique_tokens=unique
            ).by_law_interval
    else:
        centres = laws.optimum_losses(constants, target.flops)
    rows = []
    for law in dict.fromkeys([*target.by_law, *centres]):
        centre = first(target.by_law.get(law), centres.get(law))
        low, high = target.by_law_interval.get(law) or intervals.get(law) or (None, None)
        if centre is not None:
            rows.append(LawAtTarget(law, centre, low, high))
    return rows


def resamples(study: Study, name: str) -> np.ndarray:
    """Bootstrap rows of one law that are finite, none where there are none."""
    rows = study.laws.resamples.get(name) if study.laws else None
    return np.empty((0, 2)) if rows is None else rows[np.isfinite(rows).all(axis=1)]


def band(values: np.ndarray) -> Band | None:
    """Percentile interval along axis 0; None with fewer than 20 rows, where percentiles mean little."""
    if len(values) < 20:
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def as_record(record: RunRecord | Json) -> RunRecord:
    """A record, whether it came as one or as the JSON of one."""
    return record if isinstance(record, RunRecord) else RunRecord.from_dict(dict(record))


def first(*values: Any) -> float | None:
    """The first of `values` that is a finite number."""
    return next((found for found in map(number, values) if found is not None), None)


def _constants(laws: Laws) -> dict[str, np.ndarray]:
    return {name: values for name, values in laws.constants().items() if np.isfinite(values).all()}


def _read_target(record: RunRecord | None, plan: Json | None, score: Json | None, study: Study) -> Target | None:
    """The record's own prediction wins over the plan's: it is the one that was made before the run."""
    if not (record or plan or score):
        return None
    wish: Json = plan or {}
    result: Json = score or (record and record.score) or {}
    planned: Json = wish.get("prediction") or {}
    said: Json = (record and record.prediction) or planned
    interval = result.get("interval") or [None, None]
    ran = record and record.status != "diverged"
    return Target(
        flops=first(
            record and record.total_flops,
            result.get("target_flops"),
            said.get("target_flops"),
            wish.get("total_flops"),
        ),
        scale=first(record and study.scale(record), wish.get("scale"), wish.get(study.scale_key)),
        tokens=first(record and record.n_tokens, wish.get("n_tokens")),
        predicted=first(result.get("predicted_bits_per_byte"), said.get(study.loss_key), said.get("center")),
        low=first(interval[0], said.get("low")),
        high=first(interval[1], said.get("high")),
        level=first(result.get("level"), said.get("level")) or 0.9,
        measured=first(result.get("measured_bits_per_byte"), study.loss(record) if record and ran else None),
        by_law=dict(said.get("by_law") or planned.get("by_law") or {}),
        by_law_interval=dict(said.get("by_law_interval") or planned.get("by_law_interval") or {}),
        unique_tokens=first(record and record.unique_tokens, wish.get("unique_tokens")),
        curve=dict(said.get("curve") or planned.get("curve") or {}),
    )
