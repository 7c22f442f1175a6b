"""Budgets x sizes -> cells: which small runs a scaling law is fitted to, known in full before anything runs.

In: a `LadderRecipe` and, where budgets are given as time, a measured speed. Out: a `Ladder` of cells, each one a
pretrain recipe. Three purposes: `isoflop` (sizes around the optimum that a prior law expects at each budget), `grid`
(sizes x tokens per parameter) and `hyper` (learning rate x batch at each budget, for the law of both).

The one idea: with `share_trunks` all budgets draw their sizes from one common grid, batch and rate depend on the size
alone (through the budget at which that size is optimal), and runs of one size differ in nothing but their length, so a
constant-rate trunk is trained once and only the cooldowns are branches.
"""

import dataclasses
import logging
import math
from dataclasses import dataclass, field

from isoflop.errors import RecipeError
from isoflop.model.accounting import count_parameters, flops_per_token
from isoflop.model.config import ModelConfig
from isoflop.recipe import Tree, to_tree
from isoflop.scaling.lr_batch_law import HyperLaw, hyper_law
from isoflop.scaling.sweep.cells import Cell, Group, group_cells
from isoflop.scaling.sweep.recipe import LadderModelSection, LadderRecipe, check
from isoflop.scaling.sweep.shapes import largest_scale, scale_limits, shape_near
from isoflop.scaling.sweep.speed import Speed
from isoflop.tokens.shards import TokenSet
from isoflop.training.schedule import cooldown_start

log = logging.getLogger(__name__)

__all__ = ["Cell", "Group", "Ladder", "LadderRecipe", "plan_ladder", "shape_near"]


@dataclass(frozen=True)
class Ladder:
    """A sweep, known in full: what runs, what it costs, what was worth a warning."""

    recipe: LadderRecipe
    budgets: tuple[float, ...]
    cells: tuple[Cell, ...]
    groups: tuple[Group, ...]
    warnings: tuple[str, ...]
    speed: Speed | None = field(default=None, repr=False)

    @property
    def flops_separate(self) -> float:
        """M D summed over the cells, each run on its own."""
        return sum(group.steps_separate * group.flops_per_step for group in self.groups)

    @property
    def flops_shared(self) -> float:
        """M D that is really spent: trunks once."""
        return sum(group.steps_shared * group.flops_per_step for group in self.groups)

    @property
    def saving(self) -> float:
        """How many times more the same cells would cost separately."""
        return self.flops_separate / self.flops_shared

    def worker_seconds(self) -> float | None:
        """Seconds summed over workers; None without a measured speed."""
        return None if self.speed is None else sum(map(self._group_seconds, self.groups))

    def wall_seconds(self) -> float | None:
        """Seconds from start to end with `workers` workers, a group on one worker, longest group first."""
        if self.speed is None:
            return None
        busy = [0.0] * self.recipe.ladder.workers
        for seconds in sorted(map(self._group_seconds, self.groups), reverse=True):
            busy[busy.index(min(busy))] += seconds
        return max(busy)

    def table(self) -> list[Tree]:
        """One row per cell, for printing."""
        return [self._row(cell) for cell in self.cells]

    def summary(self) -> Tree:
        """What is said before anything runs, as plain data."""
        wall, worker = self.wall_seconds(), self.worker_seconds()
        return {
            "study": self.recipe.study,
            "purpose": self.recipe.ladder.purpose,
            "n_runs": len(self.cells),
            "n_trunks": sum(1 for group in self.groups if len(group.cells) > 1),
            "budgets": list(self.budgets),
            "flops_separate": self.flops_separate,
            "flops_shared": self.flops_shared,
            "saving": self.saving,
            "tokens_largest_cell": max(cell.n_tokens for cell in self.cells),
            "workers": self.recipe.ladder.workers,
            "wall_hours": None if wall is None else wall / 3600,
            "worker_hours": None if worker is None else worker / 3600,
            "warnings": list(self.warnings),
        }

    def _group_seconds(self, group: Group) -> float:
        assert self.speed is not None
        first = group.cells[0]
        seconds_per_step = first.batch_tokens / self.speed(first.config, first.batch_tokens)
        return group.steps_shared * seconds_per_step + self.recipe.ladder.overhead_s * len(group.cells)

    def _row(self, cell: Cell) -> Tree:
        config = cell.config
        rate = None if self.speed is None else self.speed(config, cell.batch_tokens)
        return {
            "cell_id": cell.cell_id,
            "budget_flops": cell.budget_flops,
            "shape": f"{config.n_layers}x{config.d_model}",
            "flops_per_token": cell.flops_per_token,
            "n_params_total": count_parameters(config).n_params_total,
            **({"n_params_active": count_parameters(config).n_params_active} if config.experts else {}),
            "n_tokens": cell.n_tokens,
            "batch_tokens": cell.batch_tokens,
            "learning_rate": cell.learning_rate,
            "steps": cell.steps,
            "seed": cell.sections["train"]["seed"],
            "trunk_id": cell.trunk_id,
            "seconds_alone": None if rate is None else cell.n_tokens / rate,
        }


def plan_ladder(recipe: LadderRecipe, speed: Speed | None = None, *, data_sha256: str = "") -> Ladder:
    """Turn a recipe into cells.

    `speed(config, batch_tokens)` gives tokens per second of one worker (see scaling/sweep/speed.py); it is needed where
    budgets are given as a time, and otherwise adds hours to the summary. `data_sha256` becomes part of the cell ids.

    Raises:
        RecipeError: fewer than three sizes in a budget, a budget too small for one step, budgets that do not increase,
            a time without a speed or too short for any ladder.
    """
    check(recipe)
    spec = recipe.ladder
    if spec.purpose != "grid" and (spec.minutes or spec.gpu_hours):
        if speed is None:
            raise RecipeError("ladder.minutes or ladder.gpu_hours needs a measured speed; or give ladder.budgets")
        return _fit_into_time(recipe, speed, data_sha256)
    ladder = _plan(recipe, spec.budgets, speed, data_sha256)
    longest = max(ladder.cells, key=lambda cell: cell.n_tokens)
    if spec.max_tokens and longest.n_tokens > spec.max_tokens:
        raise RecipeError(
            f"ladder.max_tokens = {spec.max_tokens} is less than the {longest.n_tokens} tokens of the longest cell "
            f"(budget {longest.budget_flops:.3g}, {longest.flops_per_token:.3g} FLOPs per token); lower all budgets "
            f"together, or narrow ladder.size_span"
        )
    return ladder


def ladder_on_tokens(recipe: LadderRecipe) -> tuple[LadderRecipe, str]:
    """The recipe with vocabulary and tokenizer hash of its tokens folder, and the hash of the data.

    So every cell is tied to the data it was planned on; without a folder the recipe stays and the hash is empty.

    Raises:
        DataError: no such folder, or it was made with another tokenizer than the recipe names.
        RecipeError: weights of a domain that the folder lacks.
    """
    if not recipe.data.tokens:
        return recipe, ""
    token_set = TokenSet.open(recipe.data.tokens, tokenizer_sha256=recipe.data.tokenizer_sha256)
    domains = token_set.domains("train")
    unknown = sorted(set(recipe.data.weights) - set(domains))
    if unknown:
        raise RecipeError(f"data.weights.{unknown[0]}: no such domain; the tokens have: {', '.join(domains)}")
    if recipe.model.vocab_size not in (LadderModelSection.vocab_size, token_set.vocab_size):
        log.warning(
            "model.vocab_size = %d is set to the %d rows of %s, padding included",
            recipe.model.vocab_size,
            token_set.vocab_size,
            recipe.data.tokens,
        )
    tied = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, vocab_size=token_set.vocab_size),
        data=dataclasses.replace(recipe.data, tokenizer_sha256=token_set.tokenizer_sha256),
    )
    return tied, token_set.data_sha256


def resolved(ladder: Ladder) -> LadderRecipe:
    """The recipe with the budgets that were chosen in place of the time they were chosen for."""
    section = dataclasses.replace(ladder.recipe.ladder, budgets=ladder.budgets, minutes=0.0, gpu_hours=0.0)
    return dataclasses.replace(ladder.recipe, ladder=section)


def _plan(recipe: LadderRecipe, budgets: tuple[float, ...], speed: Speed | None, data_sha256: str) -> Ladder:
    runs = _grid(recipe) if recipe.ladder.purpose == "grid" else _sizes_by_budget(recipe, budgets)
    more = [(budget, _shape(recipe, scale)) for budget, scale in recipe.ladder.cells]
    law = hyper_law(recipe.hyper)
    cells: list[Cell] = []
    # Runs of one size are planned together: with shared trunks they must agree in everything but their length.
    for config in dict.fromkeys(config for _, config in runs + more):
        first = [budget for budget, of in runs if of == config]
        wanted = list(dict.fromkeys([*first, *(budget for budget, of in more if of == config)]))
        for batch in [wanted] if recipe.ladder.share_trunks else [[budget] for budget in wanted]:
            cells.extend(_cells_of_size(recipe, law, config, batch, data_sha256, max(len(first), 1)))
    if recipe.ladder.share_trunks:
        planned = [cell for cell in cells if (cell.budget_flops, cell.config) in runs]
        cells.extend(_controls(recipe, law, planned, data_sha256))
    cells.sort(key=lambda cell: (cell.budget_flops, cell.flops_per_token, cell.learning_rate, cell.batch_tokens))
    unique = tuple({cell.cell_id: cell for cell in cells}.values())  # factors that round to one batch are one cell
    return Ladder(recipe, budgets, unique, group_cells(unique), tuple(_warnings(recipe, unique)), speed)


def _sizes_by_budget(recipe: LadderRecipe, budgets: tuple[float, ...]) -> list[tuple[float, ModelConfig]]:
    """(budget, shape) pairs: n_sizes per budget, taken from one common grid where trunks are shared."""
    spec, prior = recipe.ladder, recipe.allocation
    spacing = math.log(spec.size_span) * 2 / (spec.n_sizes - 1) if spec.n_sizes > 1 else math.log(2.0)
    if spec.share_trunks and len(budgets) > 1:
        # A whole number of grid steps from one budget's centre to the next centres every budget exactly; where that
        # would change the asked span by more than a quarter, centres are up to half a grid step off instead.
        shift = prior.exponent * math.log(budgets[-1] / budgets[0]) / (len(budgets) - 1)
        exact = shift / max(1, round(shift / spacing))
        spacing = exact if 0.8 <= exact / spacing <= 1.25 else spacing
    anchor = prior.scale_at(budgets[len(budgets) // 2]) if budgets else 0.0
    runs: list[tuple[float, ModelConfig]] = []
    for budget in budgets:
        if spec.sizes:
            targets = list(spec.sizes)
        else:
            offset = math.log(prior.scale_at(budget) / anchor) / spacing
            start = (round(offset) if spec.share_trunks else offset) - (spec.n_sizes - 1) / 2
            targets = [anchor * math.exp((start + index) * spacing) for index in range(spec.n_sizes)]
        try:
            shapes = list(dict.fromkeys(_shape(recipe, target) for target in targets))
        except RecipeError as error:
            raise RecipeError(f"{error}{_nearest_budget(recipe, budget, targets)}") from None
        if spec.purpose == "isoflop" and len(shapes) < 3:
            raise RecipeError(
                f"budget {budget:.3g} has {len(shapes)} different sizes and an IsoFLOP curve needs at least 3; "
                f"raise ladder.n_sizes = {spec.n_sizes}, ladder.size_span = {spec.size_span} or the budget"
            )
        runs.extend((budget, shape) for shape in shapes)
    return runs


def _nearest_budget(recipe: LadderRecipe, budget: float, targets: list[float]) -> str:
    """The nearest budget at which all sizes that follow from it have shapes, 6% for what is rounded."""
    if recipe.ladder.sizes:
        return ""
    low, high = scale_limits(recipe.model.seq_len, recipe.family)
    step = (max(targets) / min(targets)) ** (0.5 / max(1, len(targets) - 1)) if recipe.ladder.share_trunks else 1.0
    at, budget_at = recipe.allocation.scale_at(budget), recipe.allocation.budget_at
    if min(targets) < low:
        return (
            f"; ladder.budgets = {budget:.3g} must be at least {1.06 * budget_at(step * at * low / min(targets)):.2g}"
        )
    return f"; ladder.budgets = {budget:.3g} must be at most {budget_at(at * high / max(targets) / step) / 1.06:.2g}"


def _grid(recipe: LadderRecipe) -> list[tuple[float, ModelConfig]]:
    """(planned M D, shape) pairs of sizes x tokens per parameter."""
    shapes = dict.fromkeys(_shape(recipe, target) for target in recipe.ladder.sizes)
    return [
        (ratio * count_parameters(config).n_params_active * float(flops_per_token(config)), config)
        for config in shapes
        for ratio in sorted(recipe.ladder.tokens_per_param)
    ]


def _shape(recipe: LadderRecipe, scale: float) -> ModelConfig:
    common = recipe.model
    return shape_near(
        scale,
        vocab_size=common.vocab_size,
        seq_len=common.seq_len,
        init_std=common.init_std,
        family=recipe.family,
    )


def _cells_of_size(
    recipe: LadderRecipe, law: HyperLaw, config: ModelConfig, budgets: list[float], data_sha256: str, n_first: int = 0
) -> list[Cell]:
    """All cells of one shape at these budgets: rates x batches x seeds x lengths.

    Batch and warmup look at the first `n_first` budgets alone (0: at all), so that a cell added later changes no other.
    """
    spec, train, scale = recipe.ladder, recipe.train, flops_per_token(config)
    # Shared trunks must not know how long a run gets: rate and batch are those of the budget where the size is optimal.
    law_budget = recipe.allocation.budget_at(scale) if spec.share_trunks else budgets[0]
    law_tokens = law_budget / scale
    choice = law.choose_for(config, total_flops=law_budget, n_tokens=law_tokens)
    tokens = [budget / scale for budget in budgets]
    first = tokens[: n_first or None]
    cells: list[Cell] = []
    for batch_factor in spec.batch_factors:
        wanted = choice.batch_tokens_exact * batch_factor
        batch_tokens = _whole_batch(wanted, first, config.seq_len, exact=spec.batch_factors != (1.0,))
        steps = [round(n / batch_tokens) for n in tokens]
        for budget, n, count in zip(budgets, tokens, steps):
            if count < 1:
                raise RecipeError(
                    f"budget {budget:.3g} is too small for one step of a model with {scale:.3g} FLOPs per token: "
                    f"{n:.3g} tokens, one batch is {batch_tokens}; raise the budget to "
                    f"{scale * batch_tokens:.3g} or lower the batch in [hyper]"
                )
        warmup = train.warmup_steps or max(
            1, round(min(0.02 * law_tokens / batch_tokens, 0.1 * min(steps[: len(first)])))
        )
        for rate_factor in spec.learning_rate_factors:
            for seed in spec.seeds:
                sections = _sections(recipe, batch_tokens // config.seq_len, warmup, seed)
                rate = float(f"{choice.learning_rate * rate_factor:.6g}")
                cells.extend(
                    Cell(
                        study=recipe.study,
                        budget_flops=budget,
                        config=config,
                        steps=count,
                        batch_tokens=batch_tokens,
                        learning_rate=rate,
                        sections=sections,
                        data_sha256=data_sha256,
                        shared=spec.share_trunks,
                    )
                    for budget, count in zip(budgets, steps)
                )
    return cells


def _controls(recipe: LadderRecipe, law: HyperLaw, cells: list[Cell], data_sha256: str) -> list[Cell]:
    """The cheapest cells, those first whose shared rate is furthest from their own law's, once more on their own."""
    alone = dataclasses.replace(recipe, ladder=dataclasses.replace(recipe.ladder, share_trunks=False))

    def own(cell: Cell) -> Cell:
        found = _cells_of_size(alone, law, cell.config, [cell.budget_flops], data_sha256)[0]
        sections = {**found.sections, "train": {**found.sections["train"], "seed": cell.sections["train"]["seed"]}}
        return dataclasses.replace(found, sections=sections, control=True)

    if not recipe.ladder.n_controls:
        return []
    pairs = [(cell, own(cell)) for cell in cells]
    pairs.sort(key=lambda pair: (pair[0].budget_flops, -abs(math.log(pair[0].learning_rate / pair[1].learning_rate))))
    return [control for _, control in pairs[: recipe.ladder.n_controls]]


def _whole_batch(wanted: float, tokens: list[float], seq_len: int, *, exact: bool) -> int:
    """Whole sequences near `wanted`: within 12% the batch whose whole steps miss the token counts least.

    With `exact` (a grid over batches) simply the nearest.
    """
    nearest = max(1, round(wanted / seq_len))
    if exact:
        return nearest * seq_len

    def cost(sequences: int) -> float:
        batch = sequences * seq_len
        miss = max(abs(max(1, round(n / batch)) * batch / n - 1) for n in tokens)
        return max(miss, 0.002) + 0.02 * abs(math.log(sequences * seq_len / wanted))

    low, high = math.ceil(0.88 * nearest), math.floor(1.12 * nearest)
    return min(range(low, high + 1, max(1, (high - low) // 200)), key=cost) * seq_len


def _sections(recipe: LadderRecipe, batch_sequences: int, warmup_steps: int, seed: int) -> dict[str, Tree]:
    train = dataclasses.asdict(recipe.train)
    limit = train.pop("max_micro_batch")
    fits = (n for n in range(min(limit, batch_sequences), 0, -1) if batch_sequences % n == 0)
    train = {key: value for key, value in train.items() if value or key not in ("balance", "mtp", "optimizer")}
    train.update(micro_batch=next(fits, 0), warmup_steps=warmup_steps, seed=seed)
    sections: dict[str, Tree] = {
        "data": dataclasses.asdict(recipe.data),
        "train": train,
        "validate": dict(recipe.validate),
        "checkpoint": dict(recipe.checkpoint),
    }
    return sections if recipe.numerics is None else {**sections, "numerics": to_tree(recipe.numerics)}


def _fit_into_time(recipe: LadderRecipe, speed: Speed, data_sha256: str) -> Ladder:
    """The largest budgets, in their fixed ratio, that fit into the time and under max_tokens: bisect the first one."""
    spec = recipe.ladder
    key, unit_s = ("minutes", 60) if spec.minutes else ("gpu_hours", 3600)
    asked = getattr(spec, key)
    # Above `high` the family has no shapes left, so that a ladder that can't be planned is always too small.
    widest = largest_scale(recipe.model.seq_len, recipe.family) / spec.size_span / spec.budget_ratio
    high = math.log(recipe.allocation.budget_at(widest) / spec.budget_ratio ** (spec.n_budgets - 1))
    low, best, least_s = math.log(1e3), None, math.inf
    for _ in range(24):
        middle = (low + high) / 2
        first = float(f"{math.exp(middle):.3g}")
        budgets = tuple(float(f"{first * spec.budget_ratio**index:.3g}") for index in range(spec.n_budgets))
        try:
            ladder = _plan(recipe, budgets, speed, data_sha256)
        except RecipeError:  # too small for whole shapes or steps
            low = middle
            continue
        seconds = ladder.wall_seconds() if spec.minutes else ladder.worker_seconds()
        assert seconds is not None
        least_s = min(least_s, seconds)
        tokens = max(cell.n_tokens for cell in ladder.cells)
        if seconds <= unit_s * asked and (not spec.max_tokens or tokens <= spec.max_tokens):
            low, best = middle, ladder
        else:
            high = middle
    if best is not None:
        return best
    cells = f"with cells of at most ladder.max_tokens = {spec.max_tokens}" if spec.max_tokens else "even the smallest"
    way_out = "give more time, or"
    if unit_s * asked < least_s < math.inf:
        needed = math.ceil(1000 * least_s / unit_s) / 1000
        way_out = f"the shortest sweep needs ladder.{key} = {needed:g}: give that much, or"
    raise RecipeError(
        f"ladder.{key} = {asked:g} is too short for {spec.n_budgets} budgets of {spec.n_sizes} sizes on this device at "
        f"its measured speed ({cells}); {way_out} fewer budgets or sizes"
    )


def _warnings(recipe: LadderRecipe, cells: tuple[Cell, ...]) -> list[str]:
    found: list[str] = []
    off = [cell for cell in cells if abs(cell.total_flops / cell.budget_flops - 1) > 0.01]
    if off:
        worst = max(off, key=lambda cell: abs(cell.total_flops / cell.budget_flops - 1))
        found.append(
            f"{len(off)} of {len(cells)} cells miss their budget by more than 1% because steps are whole (worst: "
            f"{worst.total_flops:.4g} for {worst.budget_flops:.4g}, {worst.steps} steps); smaller batches come closer"
        )
    short = [cell for cell in cells if cell.steps - cooldown_start(cell.steps, recipe.train.cooldown_fraction) < 10]
    if short:
        found.append(
            f"{len(short)} of {len(cells)} cells have fewer than 10 steps of cooldown (least: "
            f"{min(cell.steps for cell in short)} steps in all); their losses may lie above the trend"
        )
    return found
