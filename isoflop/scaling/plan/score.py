"""Predicted against measured: what a finished run says about the prediction that was made before it started."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from isoflop.errors import PlanError

COMPUTE_TOLERANCE = 0.02
"""A run whose compute differs more than this from what was predicted was not the run that was predicted."""


def score(
    prediction: Mapping[str, Any],
    *,
    measured_bits_per_byte: float,
    started_at: str,
    measured_at: str,
    target_flops: float,
    target_flops_exact: float,
    largest_sweep_flops: float | None = None,
    largest_sweep_flops_exact: float | None = None,
) -> dict[str, Any]:
    """Compare the `[prediction]` section of a recipe with what its run measured.

    `started_at` is when training began, `measured_at` when validation ended (ISO 8601). Compute is what the run used,
    M D (`target_flops`) and with the output head (`target_flops_exact`); the largest sweep budgets are taken from the
    prediction unless given. `relative_error` is (predicted - measured) / measured, with its sign.

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
    sweep = largest_sweep_flops or prediction.get("largest_sweep_flops")
    sweep_exact = largest_sweep_flops_exact or prediction.get("largest_sweep_flops_exact")
    return {
        "predicted_bits_per_byte": center,
        "interval": [low, high],
        "level": float(prediction.get("level", 0.9)),
        "measured_bits_per_byte": float(measured_bits_per_byte),
        "relative_error": center / measured_bits_per_byte - 1,
        "inside_interval": low <= measured_bits_per_byte <= high,
        "relative_width": (high - low) / center,
        "target_flops": float(target_flops),
        "largest_sweep_flops": sweep,
        "target_flops_exact": float(target_flops_exact),
        "largest_sweep_flops_exact": sweep_exact,
        "ratio": target_flops / sweep if sweep else None,
        "ratio_exact": target_flops_exact / sweep_exact if sweep_exact else None,
        "predicted_at": prediction["predicted_at"],
        "started_at": started_at,
        "measured_at": measured_at,
        "laws": prediction.get("laws"),
        "laws_sha256": prediction.get("laws_sha256"),
        "by_law": prediction.get("by_law") or {},
    }


def _time(text: str, name: str) -> datetime:
    """ISO 8601 as a moment; without an offset it is UTC, which is what this package writes."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise PlanError(f"{name} = {text!r} is not an ISO 8601 time such as 2026-11-21T09:30:00+00:00") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
