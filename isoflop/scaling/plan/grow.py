"""A ladder that grows: the runs that are worth buying become cells of it, until the target's interval is narrow enough.

`next_cells` speaks of sizes and budgets; here they become shapes with a batch and a rate, beside the cells a ladder has
(`ladder.cells` of its recipe). What no shape can be, and what the ladder holds, is not offered; two sizes that come to
one shape are one offer.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from isoflop.errors import RecipeError
from isoflop.scaling.fit.joint import fit
from isoflop.scaling.laws import Laws
from isoflop.scaling.plan.allocate import best_split
from isoflop.scaling.plan.next_cells import NextCells, Run, next_cells, offered
from isoflop.scaling.sweep.cells import Cell
from isoflop.scaling.sweep.ladder import Ladder, plan_ladder, resolved
from isoflop.scaling.sweep.recipe import AllocationSection, LadderRecipe, LadderSection


def ladder_of(laws: Laws, runs: Sequence[Run]) -> LadderRecipe:
    """A recipe of these runs alone; rates and batches follow the allocation of the laws, if they have one."""
    law = laws.allocation.law("n") if laws.allocation else None
    allocation = AllocationSection(laws.flops_factor * law[0], law[1]) if law else AllocationSection()
    return LadderRecipe(study="next", ladder=LadderSection(cells=_pairs(laws, runs)), allocation=allocation)


def grown(ladder: Ladder, laws: Laws, runs: Sequence[Run]) -> Ladder:
    """The ladder with these runs as further cells; those it had stay as they are.

    Raises:
        RecipeError: no shape of the family is that small or large, or a budget is too small for one step.
    """
    recipe = resolved(ladder)
    section = dataclasses.replace(recipe.ladder, cells=recipe.ladder.cells + _pairs(laws, runs))
    recipe = dataclasses.replace(recipe, ladder=section)
    return plan_ladder(recipe, ladder.speed, data_sha256=ladder.cells[0].data_sha256)


def offered_by(ladder: Ladder, laws: Laws, target_flops: float) -> list[list[Run]]:
    """What `offered` names, as this ladder can run it: scales of real shapes, paid in FLOPs or, with a speed, seconds.

    Raises:
        PlanError: an optimum that no tested size surrounds.
    """
    held = {cell.cell_id for cell in ladder.cells}
    found = []
    for offer in offered(laws, target_flops):
        try:
            cells = [cell for cell in grown(ladder, laws, offer).cells if cell.cell_id not in held]
        except RecipeError:  # no such shape, or less than one step
            continue
        if len({cell.config for cell in cells}) == len(offer):
            held |= {cell.cell_id for cell in cells}
            found.append([_run(ladder, laws, cell) for cell in cells])
    return found


def spent(ladder: Ladder) -> float:
    """FLOPs of a ladder: trunks of its purpose once, further cells whole (their trunks are gone)."""
    recipe = resolved(ladder)
    if not ladder.budgets:
        return ladder.flops_separate
    section = dataclasses.replace(recipe.ladder, cells=())
    first = plan_ladder(dataclasses.replace(recipe, ladder=section), data_sha256=ladder.cells[0].data_sha256)
    held = {cell.cell_id for cell in first.cells}
    return first.flops_shared + sum(cell.total_flops for cell in ladder.cells if cell.cell_id not in held)


def grow_until(
    ladder: Ladder,
    sweep: Callable[[Ladder], Path],
    *,
    target_flops: float,
    width: float,
    max_flops: float,
    laws_file: Path,
    bootstrap: int = 1000,
    say: Callable[[str], None] = lambda text: None,
) -> NextCells:
    """Sweep, fit, and buy on, until the interval of the best run at `target_flops` is `width` (relative) or less.

    `sweep` runs what is missing of a ladder and returns its records. It ends, too, where nothing on offer would help
    or fit into `max_flops` for all cells together; the last answer says which.

    Raises:
        RecipeError: the ladder alone costs more. FitError, PlanError: its runs carry no law.
    """
    if spent(ladder) > max_flops:
        raise RecipeError(
            f"--max-flops = {max_flops:.3g} must be at least the {spent(ladder):.3g} FLOPs of the ladder itself; give "
            "more, or lower its budgets"
        )
    while True:
        laws = fit(sweep(ladder), bootstrap=bootstrap)
        laws.write(laws_file)
        target = best_split(laws, target_flops)
        left = max_flops - spent(ladder)
        offers = offered_by(ladder, laws, target_flops)
        payable = [offer for offer in offers if _flops(laws, offer) <= left]
        target_run = (laws, target.scale, target.n_tokens)
        found = next_cells(*target_run, width=width, offers=payable)
        if _flops(laws, found.runs) > left:
            found = next_cells(*target_run, width=width, most=1, offers=payable)
        say(found.verdict)
        if found.reached or not found.runs:
            if not found.reached and len(payable) < len(offers):
                say(f"{len(offers) - len(payable)} offers cost more than the {left:.3g} FLOPs that are left")
            return found
        ladder = grown(ladder, laws, found.runs)


def _pairs(laws: Laws, runs: Sequence[Run]) -> tuple[tuple[float, float], ...]:
    return tuple((run.budget_flops, float(f"{laws.flops_factor * run.scale:.6g}")) for run in runs)


def _flops(laws: Laws, runs: Sequence[Run]) -> float:
    return laws.flops_factor * sum(run.scale * run.n_tokens for run in runs)


def _run(ladder: Ladder, laws: Laws, cell: Cell) -> Run:
    cost = cell.total_flops
    if ladder.speed is not None:
        cost = cell.n_tokens / ladder.speed(cell.config, cell.batch_tokens) + ladder.recipe.ladder.overhead_s
    return Run(cell.budget_flops, cell.flops_per_token / laws.flops_factor, cell.n_tokens, cost)
