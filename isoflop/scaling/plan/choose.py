"""From laws and a budget to one run: shape, tokens, batch, rate, memory, hours, cost, predicted loss, and its recipe.

A laws file (own fit) or the name of a published law goes in; a `Plan` comes out, whose `recipe` is a pretrain recipe
that `isoflop train` runs as it is and that carries the prediction with its time stamp. The steps, in order: compute ->
optimal scale and tokens -> whole shape -> batch and rate -> whole steps -> memory and time -> prediction.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.errors import PlanError
from isoflop.model.accounting import count_parameters, flops_per_token, kv_bytes_per_token
from isoflop.model.config import ModelConfig
from isoflop.numerics.section import NumericsSection, by_rule, numerics_text
from isoflop.recipe import from_tree, write_json, write_recipe
from isoflop.run import now
from isoflop.scaling.laws_file import load_laws
from isoflop.scaling.lr_batch_law import HyperLaw, hyper_law
from isoflop.scaling.plan.family import by_total_parameters, check_laws_family, family_rows, leverage_of, leverage_rows
from isoflop.scaling.plan.predict import Prediction, central_loss, flops_factor, predict
from isoflop.scaling.plan.size_run import Draft, Machine, Run, ShapeNear, check_machine, memory_plan
from isoflop.scaling.sweep.cells import model_tree
from isoflop.scaling.sweep.family import DENSE, Family, family_text

__all__ = ["Machine", "Plan", "Prediction", "load_laws", "make_plan", "predict"]

SAFE_EXTRAPOLATION = 30.0
"""Extrapolate in factors of 3 to 30, refit, go on (fact sheet, section 11)."""
NEAR_OPTIMAL = 0.001
"""Plans within this relative loss of the best are listed: the optimum is flat."""


@dataclass(frozen=True)
class Plan:
    """One run, decided."""

    config: ModelConfig
    scale_name: str
    """What the laws call size: flops_per_token or n_params."""
    scale: float
    n_tokens: int
    steps: int
    batch_tokens: int
    learning_rate: float
    total_flops: float
    """By the counting of the laws: C = M D, or 6 N D."""
    total_flops_exact: float
    """With the output head and full attention."""
    gpu_hours: float | None
    hours: float | None
    cost: float | None
    memory: dict[str, Any]
    prediction: Prediction | None
    by_law_scale: dict[str, float]
    near_optimal: list[dict[str, Any]]
    serving: dict[str, float]
    unique_tokens: float | None
    hyper: dict[str, Any]
    leverage: dict[str, Any] | None
    """Mixtures only: what the experts are expected to be worth in compute (`expected`, by published laws), and what
    this study's own laws say against a dense one (`measured`), where those were given."""
    warnings: list[str]
    recipe: dict[str, Any]
    """Pretrain recipe as a TOML tree."""

    def tree(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        config = self.config
        counts = count_parameters(config)
        tree = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("config", "prediction")
        }
        tree["model"] = model_tree(config)
        tree["family"] = family_text(config)
        tree["n_params_total"], tree["n_params_non_embedding"] = counts.n_params_total, counts.n_params_non_embedding
        tree["n_params_active"] = counts.n_params_active
        tree["flops_per_token"] = flops_per_token(config, "M")
        tree["flops_per_token_exact"] = flops_per_token(config, "exact")
        tree["tokens_per_param"] = self.n_tokens / counts.n_params_active
        tree["kv_bytes_per_token"] = kv_bytes_per_token(config)
        tree["prediction"] = None
        if self.prediction is not None:
            tree["prediction"] = {**dataclasses.asdict(self.prediction), **self.recipe["prediction"]}
        return tree

    def rows(self) -> list[tuple[str, str]]:
        """The plan for people: label and text, in the order in which it was decided."""
        config, tree = self.config, self.tree()
        batch = f"{self.batch_tokens} tokens, {self.batch_tokens // config.seq_len} sequences of {config.seq_len}"
        optima = "; ".join(f"{name} {value:.4g}" for name, value in self.by_law_scale.items())
        rows = [
            ("shape", f"{config.n_layers} layers x {config.d_model}, {config.n_heads} heads, d_ff {config.d_ff}"),
            (
                "parameters",
                f"{tree['n_params_total']:.4g}, {tree['n_params_non_embedding']:.4g} without embedding and head"
                + (f"; {tree['n_params_active']:.4g} active" if config.experts else ""),
            ),
            *family_rows(config),
            ("model scale", f"{self.scale:.4g} {self.scale_name}; optimum by law: {optima}"),
            ("tokens", f"{self.n_tokens:.4g} ({tree['tokens_per_param']:.3g} per parameter), {self.steps} steps"),
            ("batch", batch),
            (
                "learning rate",
                f"{self.learning_rate:.4g}, {self.recipe['train']['schedule']} ({self.hyper['name']} law)",
            ),
            ("compute", f"{self.total_flops:.4g} FLOPs as the laws count, {self.total_flops_exact:.4g} with the head"),
        ]
        if self.hours is not None and self.gpu_hours is not None:
            cost = f", cost {self.cost:.4g}" if self.cost is not None else ""
            rows.append(("time", f"{self.hours:.3g} hours, {self.gpu_hours:.3g} device hours{cost}"))
        memory = f"{self.memory['total_bytes'] / 2**30:.3g} GiB per device at {self.memory['micro_batch']} sequences"
        rows.append(("memory", memory))
        if self.serving:
            rows.append(("serving", f"{self.serving['saving']:.1%} less compute for training and serving together"))
        near = [row["scale"] for row in self.near_optimal if row["relative_loss"] <= NEAR_OPTIMAL]
        if near:
            rows.append(
                (f"within {NEAR_OPTIMAL:.1%} loss", f"{len(near)} shapes, scale {near[0]:.3g} to {near[-1]:.3g}")
            )
        rows.extend(leverage_rows(self.leverage))
        if self.prediction is not None:
            p = self.prediction
            rows.append(("predicted", f"{p.center:.4f} {p.unit}, {p.level:.0%} interval {p.low:.4f} to {p.high:.4f}"))
            rows.append(("by law", "; ".join(f"{name} {value:.4f}" for name, value in p.by_law.items())))
        return rows

    def write(self, recipe_path: str | Path, json_path: str | Path | None = None) -> None:
        """Write the recipe (TOML) and, if asked for, everything else (JSON)."""
        lines = [f"isoflop train {recipe_path}", f"{self.total_flops:.4g} FLOPs, {self.steps} steps"]
        if self.hours is not None:
            lines.append(f"about {self.hours:.3g} hours")
        if self.prediction is not None:
            p = self.prediction
            lines.append(f"predicted {p.unit} {p.center:.4f}, {p.level:.0%} interval {p.low:.4f} to {p.high:.4f}")
        write_recipe(recipe_path, self.recipe, header="\n".join(lines))
        if json_path is not None:
            write_json(json_path, self.tree())


def make_plan(
    laws: Mapping[str, Any] | str | Path,
    *,
    budget_flops: float | None = None,
    gpu_hours: float | None = None,
    machine: Machine | None = None,
    vocab_size: int = 102_400,
    seq_len: int = 4096,
    hyper: str | Mapping[str, Any] | HyperLaw | None = None,
    template: Mapping[str, Any] | None = None,
    level: float = 0.9,
    unique_tokens: float | None = None,
    max_epochs: float | None = None,
    serve_tokens: float = 0.0,
    init_std: float = 0.0,
    largest_sweep_flops_exact: float | None = None,
    shape_near: ShapeNear | None = None,
    family: Family = DENSE,
    dense_laws: Mapping[str, Any] | str | Path | None = None,
) -> Plan:
    """Decide one run for a compute budget, given in FLOPs or in GPU-hours (of all devices together) of a machine.

    Args:
        laws: laws file, its content, or the name of a published law (then there is no prediction).
        budget_flops: C as the laws count it (M D, or 6 N D).
        hyper: law of batch and rate; by default the one in the laws file, else the one published beside the laws.
        template: a pretrain recipe tree (for example of a sweep's cell) whose data, train, validate, checkpoint
            and numerics sections carry over, so that the run differs from the sweep in nothing but size, tokens, batch
            and rate.
        unique_tokens: size of the corpus; fewer than planned makes the repeated-data law apply.
        serve_tokens: tokens expected in serving; above 0 the size is the cheapest for training plus serving.
        family: what the shapes are made of; a mixture of experts gets its expected leverage over dense models.
        dense_laws: laws of a dense sweep of one's own, against which the leverage is also measured.

    Raises:
        PlanError: no or two budgets, a budget below one optimizer step, a plan that does not fit the memory, a vertex
            outside the tested range, no interval available, laws for another tokenizer or another family.
    """
    machine = machine or Machine()
    found, laws_name, laws_sha256 = load_laws(laws)
    template = template or {}
    if shape_near is None:
        from isoflop.scaling.sweep.shapes import shape_near as nearest

        shape_near = functools.partial(nearest, family=family)
    if (budget_flops is None) == (gpu_hours is None):
        raise PlanError(
            f"budget_flops = {budget_flops} and gpu_hours = {gpu_hours}: give exactly one of them; "
            "GPU-hours also need the hardware, or a measured speed"
        )
    check_machine(machine)
    law = hyper_law(hyper or found.get("hyper") or found.get("published_hyper") or "deepseek")
    draft = Draft(
        found, law, machine, shape_near, vocab_size, seq_len, init_std, unique_tokens, max_epochs, serve_tokens
    )
    budget = budget_flops if budget_flops is not None else draft.budget_for(float(gpu_hours or 0.0))
    if not (math.isfinite(budget) and budget > 0):
        raise PlanError(f"budget_flops = {budget} must be a finite number above 0")
    run = draft.at(budget)
    check_laws_family(found, run.config)
    warnings = [*run.split.warnings, *_warnings(found, template, run, unique_tokens, machine, gpu_hours)]
    factor = flops_factor(found)
    memory, micro_batch = memory_plan(run, machine, template)
    seconds = run.device_seconds
    prediction = None
    if "published_hyper" not in found:
        prediction = predict(found, run.scale, run.n_tokens, level=level, unique_tokens=unique_tokens)
    else:
        warnings.append(f"no prediction: {laws_name} is a published law without resamples, for other data")
    total_flops = factor * run.scale * run.n_tokens
    paper_flops = float(flops_per_token(run.config, "M") * run.n_tokens)  # M D, what records count
    exact = float(flops_per_token(run.config, "exact") * run.n_tokens)
    recipe = _recipe(run, template, found, micro_batch)
    if prediction is not None:
        recipe["prediction"] = {
            prediction.unit: prediction.center,
            "low": prediction.low,
            "high": prediction.high,
            "level": prediction.level,
            "predicted_at": now(),
            "laws": laws_name,
            "laws_sha256": laws_sha256,
            "target_flops": paper_flops,
            "target_flops_exact": exact,
            "by_law": prediction.by_law,
        }
        if found.get("largest_budget_flops"):
            recipe["prediction"]["extrapolation"] = total_flops / float(found["largest_budget_flops"])
            if found["scale"] == "flops_per_token":  # 6 N D and M D must not be compared
                recipe["prediction"]["largest_sweep_flops"] = float(found["largest_budget_flops"])
        exact_sweep = largest_sweep_flops_exact or found.get("largest_budget_flops_exact")
        if exact_sweep:
            recipe["prediction"]["largest_sweep_flops_exact"] = float(exact_sweep)
    near = _near_optimal(found, run, draft, total_flops, unique_tokens)
    if not near:
        warnings.append("no list of near-optimal plans: these laws give an allocation but no loss")
    leverage = leverage_of(found, run.config, paper_flops, total_flops, dense_laws, level)
    warnings += (leverage or {}).pop("warnings", [])
    device_hours = None if seconds is None else seconds / 3600
    return Plan(
        config=run.config,
        scale_name=found["scale"],
        scale=run.scale,
        n_tokens=run.n_tokens,
        steps=run.steps,
        batch_tokens=run.batch_tokens,
        learning_rate=run.learning_rate,
        total_flops=total_flops,
        total_flops_exact=exact,
        gpu_hours=device_hours,
        hours=None if device_hours is None else device_hours / machine.n_gpus,
        cost=device_hours * machine.price_per_gpu_hour if device_hours and machine.price_per_gpu_hour else None,
        memory=memory,
        prediction=prediction,
        by_law_scale=run.split.by_law,
        near_optimal=near,
        serving=run.split.serving,
        unique_tokens=unique_tokens,
        hyper={**law.tree(), **by_total_parameters(law, run, paper_flops)},
        leverage=leverage,
        warnings=warnings,
        recipe=recipe,
    )


def _near_optimal(
    laws: Mapping[str, Any], run: Run, draft: Draft, total_flops: float, unique_tokens: float | None
) -> list[dict[str, Any]]:
    """Whole shapes at this compute whose central loss is within `NEAR_OPTIMAL` of the best of them, smallest first."""
    factor = flops_factor(laws)
    shapes = {run.config: run.scale}
    for step in np.linspace(-math.log(6), math.log(6), 73):
        try:
            config = draft.shape(run.split.scale * math.exp(step))
        except PlanError:
            continue  # the family ends here; what it has is listed
        shapes[config] = draft.scale_of(config)
    rows = []
    for config, scale in shapes.items():
        n_tokens = total_flops / (factor * scale)
        loss = central_loss(laws, scale, n_tokens, unique_tokens)
        if math.isfinite(loss):
            rows.append({"config": config, "scale": scale, "n_tokens": n_tokens, "loss": loss})
    if not rows:
        return []
    best = min(row["loss"] for row in rows)
    near = [row for row in rows if row["loss"] <= best * (1 + NEAR_OPTIMAL) or row["config"] == run.config]
    return [
        {
            "n_layers": row["config"].n_layers,
            "d_model": row["config"].d_model,
            "n_params_total": count_parameters(row["config"]).n_params_total,
            "n_params_active": count_parameters(row["config"]).n_params_active,
            "scale": row["scale"],
            "n_tokens": row["n_tokens"],
            "loss": row["loss"],
            "relative_loss": row["loss"] / best - 1,
            "kv_bytes_per_token": kv_bytes_per_token(row["config"]),
            "chosen": row["config"] == run.config,
        }
        for row in sorted(near, key=lambda row: row["scale"])
    ]


def _recipe(run: Run, template: Mapping[str, Any], laws: Mapping[str, Any], micro_batch: int) -> dict[str, Any]:
    """The pretrain recipe: what the plan decides over what the template carries over the paper's settings."""
    given = dict(template.get("train") or {})
    schedule = given.get("schedule") or _schedule(laws) or "multi_step"
    train = {
        "beta1": 0.9,
        "beta2": 0.95,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
        "cooldown_fraction": 0.2,
        "seed": 0,
        **given,
        "schedule": schedule,
        "n_tokens": run.n_tokens,
        "batch_tokens": run.batch_tokens,
        "micro_batch": micro_batch,
        "learning_rate": run.learning_rate,
        # Paper: 2000 steps; a short run warms up for 2% of its steps, as the ladder does.
        "warmup_steps": max(1, min(2000, round(0.02 * run.steps))),
    }
    data = {"tokens": "tokens", **(template.get("data") or {})}
    recipe: dict[str, Any] = {"model": model_tree(run.config), "data": data, "train": train}
    for section in ("validate", "checkpoint", "numerics"):
        if template.get(section):
            recipe[section] = dict(template[section])
    return recipe


def _schedule(laws: Mapping[str, Any]) -> str:
    stated = str((laws.get("conventions") or {}).get("schedule", ""))
    return next((name for name in ("constant_cooldown", "multi_step", "cosine") if name in stated), "")


def _warnings(
    laws: Mapping[str, Any],
    template: Mapping[str, Any],
    run: Run,
    unique_tokens: float | None,
    machine: Machine,
    gpu_hours: float | None,
) -> list[str]:
    found = []
    conventions = laws.get("conventions") or {}
    largest, compute = laws.get("largest_budget_flops"), flops_factor(laws) * run.scale * run.n_tokens
    if largest and compute > SAFE_EXTRAPOLATION * largest:
        found.append(
            f"the plan is {compute / largest:.0f} times the largest sweep budget ({largest:.3g} FLOPs); beyond "
            f"{SAFE_EXTRAPOLATION:.0f} times, train a run in between and fit again"
        )
    schedule = (template.get("train") or {}).get("schedule")
    if schedule and _schedule(laws) and schedule != _schedule(laws):
        found.append(f"schedule {schedule} differs from that of the fitted runs ({_schedule(laws)}): losses may differ")
    formats = template.get("numerics")
    planned = numerics_text(from_tree(formats, NumericsSection, "numerics.")) if formats else ""
    fitted = by_rule(str(conventions.get("numerics") or ""))
    if planned != fitted:
        found.append(
            f"numerics of the fitted runs are {fitted or 'plain'}, of this plan {planned or 'plain'}: losses will "
            "differ; give the ladder recipe of the fitted sweep (--ladder)"
        )
    trained = str(conventions.get("tokenizer_sha256") or "")
    asked = str((template.get("data") or {}).get("tokenizer_sha256") or "")
    if trained and asked and trained != asked:
        raise PlanError(
            f"data.tokenizer_sha256 = {asked[:12]} is not the tokenizer of the fitted runs ({trained[:12]}); "
            "use the sweep's tokens folder, or fit a sweep on this one"
        )
    if abs(run.split.scale / run.scale - 1) > 0.15:
        found.append(
            f"the nearest shape has {run.scale / run.split.scale:.2f} times the optimal scale; its tokens were adapted"
        )
    if (gpu_hours is not None or machine.hardware) and machine.speed is None and machine.utilisation == 0.4:
        found.append("utilisation = 0.4 is an assumption; measure it with a few steps of this shape")
    if machine.n_gpus > 1:
        found.append("the batch was rounded so that every device gets whole sequences")
    return found
