"""Predicted against measured: what a finished run says about the prediction that was made before it started."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from isoflop.errors import DataError, PlanError, RecipeError
from isoflop.recipe import Tree, check_range, load_recipe, read_tree, to_tree, write_json
from isoflop.scaling.fit.task_law import asked_of, last_of_each_task
from isoflop.scaling.sweep.cells import record_of_run, stable_hash
from isoflop.scaling.sweep.records import append_record, study_records
from isoflop.training.pretrain.recipe import PretrainRecipe, check_prediction

COMPUTE_TOLERANCE = 0.02
"""A run whose compute differs more than this from what was predicted was not the run that was predicted."""


class MetricScore(TypedDict):
    """A predicted score of a benchmark against the run's."""

    predicted: float
    interval: list[float]
    measured: float | None
    """None where the run was not evaluated on the task; so are the next two then."""
    error: float | None
    inside_interval: bool | None


@dataclass(frozen=True)
class Score:
    """What came of a prediction."""

    predicted_bits_per_byte: float
    interval: list[float]
    level: float
    measured_bits_per_byte: float
    relative_error: float
    """(predicted - measured) / measured, with its sign."""
    inside_interval: bool
    relative_width: float
    target_flops: float
    largest_sweep_flops: float | None
    target_flops_exact: float
    largest_sweep_flops_exact: float | None
    ratio: float | None
    ratio_exact: float | None
    predicted_at: str
    started_at: str
    measured_at: str
    laws: str | None
    laws_sha256: str | None
    by_law: dict[str, float]
    benchmarks: dict[str, dict[str, MetricScore]] = field(default_factory=dict)
    """By task and metric."""


def score_benchmarks(prediction: Tree, evaluated: Mapping[str, Tree]) -> dict[str, dict[str, MetricScore]]:
    """Predicted against measured scores; `evaluated` holds the run's record of each task.

    Raises:
        PlanError: the run was asked other items than the cells that the prediction came from.
    """
    found: dict[str, dict[str, MetricScore]] = {}
    for task, metrics in (prediction.get("benchmarks") or {}).items():
        record = evaluated.get(task)
        asked = prediction.get("asked", {}).get(task)
        if record and asked and asked_of(record) != asked:
            raise PlanError(
                f"task {task}: the run was asked {asked_of(record)}, the cells of the law {asked}; evaluate both with "
                "one recipe and the same files"
            )
        for metric, p in metrics.items():
            measured = record["metrics"].get(metric, {}).get("value") if record else None
            error = None if measured is None else p["value"] - measured
            inside = None if measured is None else p["low"] <= measured <= p["high"]
            found.setdefault(task, {})[metric] = {
                "predicted": p["value"],
                "interval": [p["low"], p["high"]],
                "measured": measured,
                "error": error,
                "inside_interval": inside,
            }
    return found


def score(
    prediction: Tree,
    *,
    measured_bits_per_byte: float,
    started_at: str,
    measured_at: str,
    target_flops: float,
    target_flops_exact: float,
) -> Score:
    """Compare the `[prediction]` section of a recipe with what its run measured.

    `started_at` is when training began, `measured_at` when validation ended (ISO 8601). Compute is what the run used,
    M D (`target_flops`) and with the output head (`target_flops_exact`).

    Raises:
        PlanError: no prediction, a loss that is not a number, a prediction made after the run started, or a run of
            another size than the one predicted.
    """
    missing = [key for key in ("bits_per_byte", "low", "high", "predicted_at") if prediction.get(key) is None]
    if missing:
        raise PlanError(
            f"prediction has no {', '.join(missing)}, so there is nothing to score; "
            "write the recipe with isoflop plan from a laws file of your own runs"
        )
    if not (math.isfinite(measured_bits_per_byte) and measured_bits_per_byte > 0):
        raise PlanError(
            f"measured_bits_per_byte = {measured_bits_per_byte} must be a number above 0; did the run diverge?"
        )
    predicted_at, started = _time(str(prediction["predicted_at"]), "predicted_at"), _time(started_at, "started_at")
    if predicted_at > started:
        raise PlanError(
            f"predicted_at = {prediction['predicted_at']} is later than the start of the run, {started_at}: that is no "
            "prediction; score only runs that were planned first"
        )
    if _time(measured_at, "measured_at") < started:
        raise PlanError(
            f"measured_at = {measured_at} is earlier than the start of the run, {started_at}; check the record"
        )
    planned = prediction.get("target_flops")
    if planned and abs(target_flops / planned - 1) > COMPUTE_TOLERANCE:
        raise PlanError(
            f"target_flops = {target_flops:.4g} of the run differs from the predicted {planned:.4g} by more than "
            f"{COMPUTE_TOLERANCE:.0%}; score the planned run, or plan again before training"
        )
    center, low, high = (float(prediction[key]) for key in ("bits_per_byte", "low", "high"))
    sweep, sweep_exact = prediction.get("largest_sweep_flops"), prediction.get("largest_sweep_flops_exact")
    return Score(
        predicted_bits_per_byte=center,
        interval=[low, high],
        level=float(prediction.get("level", 0.9)),
        measured_bits_per_byte=float(measured_bits_per_byte),
        relative_error=center / measured_bits_per_byte - 1,
        inside_interval=low <= measured_bits_per_byte <= high,
        relative_width=(high - low) / center,
        target_flops=float(target_flops),
        largest_sweep_flops=sweep,
        target_flops_exact=float(target_flops_exact),
        largest_sweep_flops_exact=sweep_exact,
        ratio=target_flops / sweep if sweep else None,
        ratio_exact=target_flops_exact / sweep_exact if sweep_exact else None,
        predicted_at=prediction["predicted_at"],
        started_at=started_at,
        measured_at=measured_at,
        laws=prediction.get("laws"),
        laws_sha256=prediction.get("laws_sha256"),
        by_law=prediction.get("by_law") or {},
    )


def score_run(run_dir: Path, *, records: Path | None = None) -> Score:
    """Score a finished run against the prediction in its recipe; writes `run_dir`/score.json.

    Benchmarks are scored where the run was evaluated (isoflop eval).
    `records` gets a line of kind "target" with prediction and score; by default those of the study around the run.

    Raises:
        DataError: the run is not finished.
        PlanError: the recipe carries no prediction, or one made after the run had started.
    """
    result_path, recipe_path = run_dir / "result.json", run_dir / "recipe.toml"
    if not result_path.is_file():
        raise DataError(f"{run_dir} has no result.json: it is not a finished run; finish it with isoflop train")
    result = _result(result_path)
    if not _is_pretrain(recipe_path):
        raise RecipeError(f"recipe {recipe_path} has no [model] section; give a pretrain recipe or the folder of a run")
    recipe = load_recipe(recipe_path, PretrainRecipe)
    if not recipe.prediction:
        raise PlanError(
            f"{recipe_path} has no [prediction] section; write the recipe with isoflop plan before training"
        )
    check_prediction(recipe.prediction)
    if result["status"] != "finished":
        raise PlanError(f"{run_dir} ended as {result['status']}: there is no loss to score; train it again")
    found = score(
        recipe.prediction,
        measured_bits_per_byte=result["bits_per_byte"],
        started_at=result["started_at"],
        measured_at=result["finished_at"],
        target_flops=result["total_flops"],
        target_flops_exact=result["total_flops_exact"],
    )
    benchmarks = score_benchmarks(recipe.prediction, last_of_each_task(run_dir / "evaluation.jsonl"))
    found = dataclasses.replace(found, benchmarks=benchmarks)
    write_json(run_dir / "score.json", found)
    records = records or study_records(run_dir.absolute().parent)
    if records is not None:
        tree = to_tree(recipe)
        record = record_of_run(
            recipe.model,
            tree["train"],
            result,
            run_id=f"target-{stable_hash([tree, result['trajectory']])}",
            study="",
            kind="target",
            budget_flops=result["total_flops"],
            trunk_id="",
        )
        known = dataclasses.replace(record, prediction=recipe.prediction, score=dataclasses.asdict(found))
        append_record(records, known)
    return found


def _result(path: Path) -> Tree:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); run isoflop train again") from error
    needed = ["status"]
    if isinstance(found, dict) and found.get("status") == "finished":
        needed += ["bits_per_byte", "started_at", "finished_at", "total_flops", "total_flops_exact"]
    missing = [key for key in needed if not isinstance(found, dict) or key not in found]
    if missing:
        raise DataError(f"{path} has no {missing[0]}: it is no result of isoflop train; run that again")
    for key in needed:
        try:
            check_range(found[key], str if key in ("status", "started_at", "finished_at") else float, f"{path}: {key}")
        except RecipeError as error:
            raise DataError(f"{error}; run isoflop train again") from error
    return found


def _is_pretrain(recipe_path: Path) -> bool:
    """Whether this is the recipe of a language model; where it cannot be read, loading it raises."""
    with contextlib.suppress(RecipeError):
        return "model" in read_tree(recipe_path)
    return True


def _time(text: str, name: str) -> datetime:
    """ISO 8601 as a moment; without an offset it is UTC, which is what this package writes."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise PlanError(f"{name} = {text!r} is not an ISO 8601 time such as 2026-11-21T09:30:00+00:00") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
