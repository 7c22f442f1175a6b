"""From laws and a budget to one run: shape, tokens, batch, rate, memory, hours, cost, predicted loss, and its recipe.

`Laws` (own fit, or a published law by name) go in; a `Plan` comes out, whose `recipe` is a pretrain recipe that
`isoflop train` runs as it is and that carries the prediction with its time stamp. The steps, in order: compute ->
optimal scale and tokens -> whole shape -> batch and rate -> whole steps -> memory and time -> prediction.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from isoflop.errors import PlanError
from isoflop.model.accounting import count_parameters, flops_per_token, kv_bytes_per_token
from isoflop.model.config import ModelConfig
from isoflop.model.hardware import Machine, check_machine
from isoflop.numerics.section import NumericsSection, by_rule, numerics_text
from isoflop.recipe import Positive, PositiveInt, Tree, check_arguments, from_tree, write_json, write_recipe
from isoflop.run import now
from isoflop.scaling.laws import Laws
from isoflop.scaling.lr_batch_law import HyperChoice, HyperLaw, hyper_law
from isoflop.scaling.plan.curve import SweepCurves, predicted_curve
from isoflop.scaling.plan.predict import Prediction, central_loss, predict, predict_benchmarks
from isoflop.scaling.plan.size_run import Draft, MemoryPlan, Run, memory_plan
from isoflop.scaling.published import LAWS, LawsSource, load_laws
from isoflop.scaling.sweep.family import DENSE, Family, family_text
from isoflop.scaling.sweep.shapes import model_tree

if TYPE_CHECKING:
    from isoflop.scaling.plan.moe_leverage import Leverage
    from isoflop.scaling.sweep.ladder import Ladder

__all__ = ["Machine", "Plan", "Prediction", "load_laws", "plan", "predict"]

SAFE_EXTRAPOLATION = 30.0
"""Extrapolate in factors of 3 to 30, refit, go on (fact sheet, section 11)."""
NEAR_OPTIMAL = 0.001
"""Plans within this relative loss of the best are listed: the optimum is flat."""
TRAIN = {"beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1, "clip_norm": 1.0, "cooldown_fraction": 0.2, "seed": 0}
"""How a run trains where no template says it: the paper's settings (arXiv 2401.02954)."""


@dataclass(frozen=True)
class NearPlan:
    """A shape whose predicted loss at this compute is nearly the best."""

    n_layers: int
    d_model: int
    n_params_total: int
    n_params_active: int
    scale: float
    n_tokens: float
    loss: float
    relative_loss: float
    """Above the best of the list."""
    kv_bytes_per_token: int
    chosen: bool


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
    memory: MemoryPlan
    prediction: Prediction | None
    extrapolation: float | None
    """Compute over that of the largest run that the laws were fitted to, where they say it."""
    rough_loss: dict[str, float]
    """Without a prediction: nats per token by every published law of loss, each on its own data and tokenizer."""
    by_law_scale: dict[str, float]
    near_optimal: list[NearPlan]
    serving: dict[str, float]
    unique_tokens: float | None
    hyper: HyperLaw
    by_total_parameters: HyperChoice | None
    """Mixtures only: what a law of N would choose if it meant all parameters; which count enters is not settled."""
    leverage: "Leverage | None"
    """Mixtures only: what the experts are expected to be worth in compute (`expected`, by published laws), and what
    this study's own laws say against a dense one (`measured`), where those were given."""
    warnings: list[str]
    recipe: Tree
    """Pretrain recipe as a TOML tree."""

    def tree(self) -> Tree:
        """Plain data for `--json`."""
        config, counts = self.config, count_parameters(self.config)
        typed = ("config", "prediction", "by_total_parameters")
        tree = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in typed}
        tree["memory"], tree["hyper"] = self.memory.tree(), self.hyper.tree()
        tree["near_optimal"] = [dataclasses.asdict(near) for near in self.near_optimal]
        tree["leverage"] = self.leverage and dataclasses.asdict(self.leverage)
        if other := self.by_total_parameters:
            why = "the plan takes N as the parameters that a token uses; which count enters is not settled"
            choice = {"learning_rate": other.learning_rate, "batch_tokens": other.batch_tokens, "why": why}
            tree["hyper"]["by_total_parameters"] = choice
        tree["model"] = model_tree(config)
        tree["family"] = family_text(config)
        for name in ("n_params_total", "n_params_non_embedding", "n_params_active"):
            tree[name] = getattr(counts, name)
        tree["flops_per_token"] = flops_per_token(config, "M")
        tree["flops_per_token_exact"] = flops_per_token(config, "exact")
        tree["tokens_per_param"] = self.n_tokens / counts.n_params_active
        tree["kv_bytes_per_token"] = kv_bytes_per_token(config)
        tree["prediction"], tree["benchmarks"] = None, self.recipe.get("prediction", {}).get("benchmarks", {})
        if self.prediction is not None:
            tree["prediction"] = {**dataclasses.asdict(self.prediction), **self.recipe["prediction"]}
        return tree

    def write(self, recipe_path: str | Path, json_path: str | Path | None = None) -> None:
        """Write the recipe (TOML) and everything else (JSON): where asked for, or as plan.json beside a plan.toml.

        Raises:
            PlanError: it does not fit the memory.
        """
        if self.memory.refusal:
            raise PlanError(self.memory.refusal)
        lines = [f"isoflop train {recipe_path}", f"{self.total_flops:.4g} FLOPs, {self.steps} steps"]
        if self.hours is not None:
            lines.append(f"about {self.hours:.3g} hours")
        if self.prediction is not None:
            p = self.prediction
            lines.append(f"predicted {p.unit} {p.center:.4f}, {p.level:.0%} interval {p.low:.4f} to {p.high:.4f}")
        write_recipe(recipe_path, self.recipe, header="\n".join(lines))
        if json_path is None and Path(recipe_path).name == "plan.toml":
            json_path = Path(recipe_path).with_suffix(".json")
        if json_path is not None:
            write_json(json_path, self.tree())


def plan(
    laws: LawsSource,
    *,
    budget_flops: Positive | None = None,
    gpu_hours: Positive | None = None,
    machine: Machine | None = None,
    ladder: "Ladder | None" = None,
    vocab_size: PositiveInt | None = None,
    seq_len: PositiveInt | None = None,
    hyper: str | Tree | HyperLaw | None = None,
    template: Tree | None = None,
    level: float = 0.9,
    unique_tokens: Positive | None = None,
    max_epochs: Positive | None = None,
    serve_tokens: float = 0.0,
    largest_sweep_flops_exact: float | None = None,
    family: Family = DENSE,
    dense_laws: LawsSource | None = None,
    same_held_out: bool = False,
    curves: SweepCurves | None = None,
) -> Plan:
    """Decide one run for a compute budget, given in FLOPs or in GPU-hours (of all devices together) of a machine.

    Args:
        laws: `Laws`, a laws file or its content, or the name of a published law (then there is no prediction).
        budget_flops: C as the laws count it (M D, or 6 N D).
        ladder: the sweep that the laws were fitted to: what its cells have in common (vocabulary, context, family, law
            of batch and rate, sections of the recipe) holds for the plan too, where nothing else is given.
        vocab_size, seq_len: where there is no ladder, by default 102,400 and 4,096.
        hyper: law of batch and rate; by default the one in the laws, else the one published beside the laws.
        template: a pretrain recipe tree (for example of a sweep's cell) whose data, train, validate, checkpoint
            and numerics sections carry over, so that the run differs from the sweep in nothing but size, tokens, batch
            and rate.
        unique_tokens: size of the corpus; fewer than planned makes the repeated-data law apply.
        serve_tokens: tokens expected in serving; above 0 the size is the cheapest for training plus serving, at the
            loss that the budget reaches when all of it goes into training that size.
        family: what the shapes are made of; a mixture of experts gets its expected leverage over dense models.
        dense_laws: laws of a dense sweep of one's own, against which the leverage is also measured.
        same_held_out: vouches that both were measured on one text, where laws do not say on which.
        curves: what the loss curves of the sweep say, for the predicted curve of the run.

    A plan that does not fit the memory says so in `memory.refusal`, with what would fit, and is not written.

    Raises:
        RecipeError: a number out of its range. PlanError: no or two budgets, a budget below one optimizer step, a
            vertex outside the tested range, no interval available, laws for another tokenizer or another family.
    """
    check_arguments(plan, locals())
    machine = machine or Machine()
    if ladder is not None:
        template = template or ladder.cells[-1].recipe
        vocab_size, seq_len = vocab_size or template["model"]["vocab_size"], seq_len or template["model"]["seq_len"]
        hyper, family = hyper or ladder.recipe.hyper, ladder.recipe.family
        exact_sweep = max(cell.total_flops_exact for cell in ladder.cells)
        largest_sweep_flops_exact = largest_sweep_flops_exact or exact_sweep
    found, template = load_laws(laws), template or {}
    if (budget_flops is None) == (gpu_hours is None):
        raise PlanError(
            f"budget_flops = {budget_flops} and gpu_hours = {gpu_hours}: give exactly one of them; "
            "GPU-hours also need the hardware, or a measured speed"
        )
    check_machine(machine)
    law = hyper_law(hyper or found.hyper or found.published_hyper or "deepseek")
    draft = Draft(
        laws=found,
        law=law,
        machine=machine,
        family=family,
        vocab_size=vocab_size or 102_400,
        seq_len=seq_len or 4096,
        unique_tokens=unique_tokens,
        max_epochs=max_epochs,
        serve_tokens=serve_tokens,
    )
    run = draft.at(draft.budget_for(gpu_hours) if gpu_hours else draft.reached_with(budget_flops or 0.0))
    _check_family(found, run.config)
    warnings = [*run.split.warnings, *_warnings(draft, template, run, gpu_hours)]
    memory = memory_plan(draft, run, template)
    total_flops = found.flops_factor * run.scale * run.n_tokens
    paper_flops = float(flops_per_token(run.config, "M") * run.n_tokens)  # M D, what records count
    exact = float(flops_per_token(run.config, "exact") * run.n_tokens)
    recipe = _recipe(run, template, found, memory.micro_batch)
    prediction, rough_loss = None, {}
    if found.published:
        warnings.append(f"no prediction: {found.name} is a published law without resamples, for other data")
        n_params = count_parameters(run.config).n_params_active
        losses = {name: central_loss(one, n_params, run.n_tokens, unique_tokens) for name, one in LAWS.items()}
        rough_loss = {name: loss for name, loss in losses.items() if LAWS[name].surfaces}
    else:
        prediction = predict(found, run.scale, run.n_tokens, level=level, unique_tokens=unique_tokens)
        recipe["prediction"] = _stated(prediction, found, paper_flops, exact, largest_sweep_flops_exact)
        if curve := predicted_curve(found, prediction, recipe, run.scale, curves):
            recipe["prediction"]["curve"] = curve
        if found.benchmarks:
            recipe["prediction"]["benchmarks"] = predict_benchmarks(found, run.scale, run.n_tokens, level=level)
            recipe["prediction"]["asked"] = {task: law.asked for task, law in found.benchmarks.items()}
    near = _near_optimal(draft, run, total_flops)
    if not near:
        warnings.append("no list of near-optimal plans: these laws give an allocation but no loss")
    leverage = None
    if run.config.experts is not None or dense_laws is not None:
        from isoflop.scaling.plan.moe_leverage import leverage_of

        dense = None if dense_laws is None else load_laws(dense_laws)
        leverage, notes = leverage_of(found, run.config, paper_flops, total_flops, dense, level, same_held_out)
        warnings += notes
    by_total = None
    if run.config.experts is not None and "n_params" in law.needs():
        by_total = law.choose_for(run.config, total_flops=paper_flops, n_tokens=run.n_tokens, count="total")
    device_hours = None if run.device_seconds is None else run.device_seconds / 3600
    return Plan(
        config=run.config,
        scale_name=found.scale,
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
        extrapolation=total_flops / found.largest_budget_flops if found.largest_budget_flops else None,
        rough_loss=rough_loss,
        by_law_scale=run.split.by_law,
        near_optimal=near,
        serving=run.split.serving,
        unique_tokens=unique_tokens,
        hyper=law,
        by_total_parameters=by_total,
        leverage=leverage,
        warnings=warnings,
        recipe=recipe,
    )


def _stated(prediction: Prediction, laws: Laws, paper_flops: float, exact: float, exact_sweep: float | None) -> Tree:
    """The `[prediction]` section of the recipe."""
    section: Tree = {
        prediction.unit: prediction.center,
        "low": prediction.low,
        "high": prediction.high,
        "level": prediction.level,
        "predicted_at": now(),
        "laws": laws.name,
        "laws_sha256": laws.fingerprint(),
        "target_flops": paper_flops,
        "target_flops_exact": exact,
        "by_law": prediction.by_law,
    }
    if laws.largest_budget_flops:
        section["extrapolation"] = prediction.total_flops / laws.largest_budget_flops
        if laws.scale == "flops_per_token":  # 6 N D and M D must not be compared
            section["largest_sweep_flops"] = float(laws.largest_budget_flops)
    exact_sweep = exact_sweep or laws.largest_budget_flops_exact
    if exact_sweep:
        section["largest_sweep_flops_exact"] = float(exact_sweep)
    return section


def _near_optimal(draft: Draft, run: Run, total_flops: float) -> list[NearPlan]:
    """Whole shapes at this compute whose central loss is within `NEAR_OPTIMAL` of the best of them, smallest first."""
    laws, shapes = draft.laws, {run.config: run.scale}
    for step in np.linspace(-math.log(6), math.log(6), 73):
        try:
            config = draft.shape(run.split.scale * math.exp(step))
        except PlanError:
            continue  # the family ends here; what it has is listed
        shapes[config] = draft.scale_of(config)
    tokens = {config: total_flops / (laws.flops_factor * scale) for config, scale in shapes.items()}
    every = {c: central_loss(laws, scale, tokens[c], draft.unique_tokens) for c, scale in shapes.items()}
    losses = {config: loss for config, loss in every.items() if math.isfinite(loss)}
    best = min(losses.values(), default=0.0)
    near = (c for c, loss in losses.items() if loss <= best * (1 + NEAR_OPTIMAL) or c == run.config)
    return [
        NearPlan(
            n_layers=config.n_layers,
            d_model=config.d_model,
            n_params_total=count_parameters(config).n_params_total,
            n_params_active=count_parameters(config).n_params_active,
            scale=shapes[config],
            n_tokens=tokens[config],
            loss=losses[config],
            relative_loss=losses[config] / best - 1,
            kv_bytes_per_token=kv_bytes_per_token(config),
            chosen=config == run.config,
        )
        for config in sorted(near, key=shapes.__getitem__)
    ]


def _check_family(laws: Laws, config: ModelConfig) -> None:
    """Laws of one kind of model say nothing about another. Raises PlanError where the laws name their kind."""
    stated, planned = laws.conventions.get("family") or "", family_text(config)
    if stated and stated != planned:
        raise PlanError(
            f"conventions.family = {stated!r} of the laws is not the planned model's ({planned!r}), and a law holds "
            f"for its own family; give the ladder recipe of the fitted sweep (--ladder), or laws of this family"
        )


def _recipe(run: Run, template: Tree, laws: Laws, micro_batch: int) -> Tree:
    """The pretrain recipe: what the plan decides over what the template carries over `TRAIN`."""
    given = TRAIN | (template.get("train") or {})
    train = {
        **given,
        "schedule": given.get("schedule") or _schedule(laws) or "multi_step",
        "n_tokens": run.n_tokens,
        "batch_tokens": run.batch_tokens,
        "micro_batch": micro_batch,
        "learning_rate": run.learning_rate,
        # Paper: 2000 steps; a short run warms up for 2% of its steps, as the ladder does.
        "warmup_steps": max(1, min(2000, round(0.02 * run.steps))),
    }
    data = {"tokens": "tokens", **(template.get("data") or {})}
    recipe: Tree = {"model": model_tree(run.config), "data": data, "train": train}
    for section in ("validate", "checkpoint", "numerics"):
        if template.get(section):
            recipe[section] = dict(template[section])
    return recipe


def _schedule(laws: Laws) -> str:
    stated = str(laws.conventions.get("schedule", ""))
    return next((name for name in ("constant_cooldown", "multi_step", "cosine") if name in stated), "")


def _warnings(draft: Draft, template: Tree, run: Run, gpu_hours: float | None) -> list[str]:
    found, laws, machine = [], draft.laws, draft.machine
    largest, compute = laws.largest_budget_flops, laws.flops_factor * run.scale * run.n_tokens
    if largest and compute > SAFE_EXTRAPOLATION * largest:
        found.append(
            f"the plan is {compute / largest:.3g} times the largest sweep budget ({largest:.3g} FLOPs); beyond "
            f"{SAFE_EXTRAPOLATION:.0f} times, train a run in between and fit again"
        )
    schedule = (template.get("train") or {}).get("schedule")
    if schedule and _schedule(laws) and schedule != _schedule(laws):
        found.append(f"schedule {schedule} differs from that of the fitted runs ({_schedule(laws)}): losses may differ")
    formats = template.get("numerics")
    planned = numerics_text(from_tree(formats, NumericsSection, "numerics.")) if formats else ""
    fitted = by_rule(str(laws.conventions.get("numerics") or ""))
    if planned != fitted:
        found.append(
            f"numerics of the fitted runs are {fitted or 'plain'}, of this plan {planned or 'plain'}: losses will "
            "differ; give the ladder recipe of the fitted sweep (--ladder)"
        )
    trained = str(laws.conventions.get("tokenizer_sha256") or "")
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
    return found
