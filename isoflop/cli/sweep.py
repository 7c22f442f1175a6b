"""The commands that choose and run the cells of a study: ladder, sweep, next."""

import contextlib
import dataclasses
import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from isoflop.cli.arguments import Json, Out, Overrides, Recipe, Writes, load_recipe, refuse_unused, require_own
from isoflop.cli.console import Bar, flat, print_rows, print_table, print_warnings, report_found, say, stop_on_signal
from isoflop.errors import RecipeError
from isoflop.launch.choose import EngineSection, Kind, open_engine
from isoflop.recipe import Amount, NotNegativeInt, PositiveInt, Range, read_tree, write_recipe

if TYPE_CHECKING:
    from isoflop.launch.engine import Engine
    from isoflop.scaling.sweep.recipe import LadderRecipe


def ladder(
    recipe: Recipe,
    /,
    *overrides: Overrides,
    dry_run: Annotated[bool, Parameter(help="write nothing, print the plan of the sweep")] = False,
    calibrate: Annotated[bool, Parameter(help="measure this device to state hours")] = True,
    out: Out = Path("runs/sweep"),
    json: Json = None,
) -> None:
    """Budgets x sizes -> cells of a sweep, with runs, FLOPs and hours, before anything runs."""
    planned = planned_ladder(recipe, overrides, calibrate=calibrate)
    if not dry_run:
        for cell in planned.cells:
            write_recipe(
                out / "recipes" / f"{cell.cell_id}.toml", cell.recipe, header=f"cell of {planned.recipe.study}"
            )
    where = "nothing written" if dry_run else f"{len(planned.cells)} recipes in {out / 'recipes'}"
    report_found({"summary": planned.summary(), "cells": planned.table()}, json, where, [])
    print_table(planned.table())
    print_rows(flat(planned.summary()))
    print_warnings(planned.warnings)


def sweep(
    recipe: Recipe,
    /,
    *overrides: Overrides,
    out: Out = Path("runs/sweep"),
    keep_weights: Annotated[bool, Parameter(help="keep the weights of every cell")] = False,
    stack: Annotated[
        NotNegativeInt, Parameter(help="cells of one shape that are trained as one program (0: 8 on a GPU, 1 on a CPU)")
    ] = 0,
    engine: Annotated[
        Kind | None, Parameter(help="where cells run: processes of this machine, or a Ray cluster; else the recipe's")
    ] = None,
    cluster: Annotated[
        str | None, Parameter(metavar="ADDRESS", help='HOST:PORT of a Ray cluster, or "auto" on one of its machines')
    ] = None,
    calibrate: Annotated[bool, Parameter(help="measure the workers first, to state hours")] = True,
    until_width: Annotated[
        float | None,
        Range(above=0, below=1),
        Parameter(help="then fit and run further cells until the interval of a forecast is this narrow (0.05: 5%)"),
    ] = None,
    target_flops: Annotated[Amount | None, Parameter(help="of that forecast: the best run at this compute")] = None,
    max_flops: Annotated[Amount | None, Parameter(help="most that all cells may cost, the ladder's own too")] = None,
    json: Json = None,
) -> None:
    """Run the missing cells of a ladder, sharing trunks, one record per cell."""
    if until_width is None:
        refuse_unused("without --until-width", target_flops=target_flops, max_flops=max_flops)
    elif target_flops is None or max_flops is None:
        raise RecipeError(
            "--until-width needs --target-flops, the compute that is forecast, and --max-flops, the most to spend"
        )
    from isoflop.scaling.sweep.ladder import LadderRecipe, resolved
    from isoflop.scaling.sweep.run import run_sweep

    asked = load_recipe(recipe, LadderRecipe, overrides)
    section = _engine_section(asked.engine, engine, cluster)
    with _opened(asked, section) as working:
        fixed = out / "ladder.toml"
        going_on = fixed.is_file() and _same_ladder(recipe, overrides, fixed)
        if going_on:
            print(f"going on with {fixed}")
            planned = planned_ladder(fixed, (), calibrate=False, engine=working)
        else:
            planned = planned_ladder(recipe, overrides, calibrate=calibrate, engine=working)
            begun = (out / "ladder.json").exists() or (out / "records.jsonl").exists()
            if not begun:  # else run_sweep must accept it first
                write_recipe(fixed, resolved(planned), header=f"the ladder of this sweep, from {recipe}")
        print_rows(flat(planned.summary()))
        print_warnings(planned.warnings)

        def run(grown: Any) -> Path:
            header = f"the ladder of this sweep, from {recipe}"
            if grown is not planned:
                write_recipe(fixed, resolved(grown), header=f"{header}, with further cells")
            with Bar("FLOP") as bar, stop_on_signal() as stop:
                records = run_sweep(
                    list(grown.cells),
                    out,
                    study=grown.recipe.study,
                    stack=stack,
                    keep_weights=keep_weights,
                    engine=working,
                    speed=grown.speed,
                    on_progress=bar.sweep,
                    say=bar.say,
                    should_stop=stop,
                )
            if grown is planned and not going_on:
                write_recipe(fixed, resolved(planned), header=header)
            found.update(
                cells=len(grown.cells),
                recorded=len(records),
                diverged=[record.run_id for record in records if record.status == "diverged"],
                **json_module.loads((out / "sweep.json").read_text(encoding="utf-8")),
            )
            if len(records) < len(grown.cells):
                report_found(found, json, f"{len(records)} of {len(grown.cells)} cells in {out / 'records.jsonl'}", [])
                raise KeyboardInterrupt
            return out / "records.jsonl"

        found: dict[str, Any] = {"records": str(out / "records.jsonl")}
        if until_width is None or target_flops is None or max_flops is None:
            run(planned)
        else:
            from isoflop.scaling.plan.grow import grow_until

            laws = out / "laws.json"
            last = grow_until(
                planned, run, target_flops=target_flops, width=until_width, max_flops=max_flops, laws_file=laws, say=say
            )
            found |= {"laws": str(laws), "next": last.tree()}
    report_found(found, json, f"{found['recorded']} of {found['cells']} cells in {out / 'records.jsonl'}", [])


def next_(
    laws: Annotated[str, Parameter(metavar="LAWS", help="laws.json, as isoflop fit writes it")] = "runs/laws.json",
    /,
    *,
    budget_flops: Annotated[Amount | None, Parameter(help="the target: a run at the optimum of this compute")] = None,
    n_params: Annotated[Amount | None, Parameter(help="or: of the target, as the laws count them")] = None,
    flops_per_token: Annotated[Amount | None, Parameter(help="of the target, where the laws count size so")] = None,
    n_tokens: Annotated[Amount | None, Parameter(help="of the target")] = None,
    width: Annotated[
        float, Range(above=0, below=1), Parameter(help="of the interval that will do, over its centre")
    ] = 0.05,
    cells: Annotated[PositiveInt, Parameter(help="how many to name; a new budget comes with three sizes")] = 4,
    level: Annotated[float, Range(at_least=0.5, at_most=0.999), Parameter(help="of the interval")] = 0.9,
    ladder: Annotated[
        Path | None, Parameter(metavar="RECIPE", help="the sweep's ladder.toml, which the cells are added to")
    ] = None,
    calibrate: Annotated[
        bool, Parameter(help="measure this device and choose by its hours instead of FLOPs; needs --ladder")
    ] = False,
    out: Annotated[Path, Writes(".toml"), Parameter(metavar="FILE", help="recipe that isoflop sweep runs")] = Path(
        "runs/next.toml"
    ),
    json: Json = None,
) -> None:
    """Laws and a target -> the runs that narrow its interval most for their cost, as a recipe of a sweep."""
    from isoflop.cli.fit_summary import print_next
    from isoflop.scaling.plan import grow
    from isoflop.scaling.plan.forecast import far_beyond, forecast
    from isoflop.scaling.plan.next_cells import next_cells
    from isoflop.scaling.published import load_laws

    if ladder is None:
        refuse_unused("without --ladder", calibrate=calibrate)
    sizes = {"n_params": n_params, "flops_per_token": flops_per_token, "n_tokens": n_tokens}
    given = {name: value for name, value in (sizes | {"total_flops": budget_flops}).items() if value is not None}
    if not given:
        raise RecipeError("isoflop next needs the target: --budget-flops, or --n-params and --n-tokens")
    require_own("--out", out, r"# the interval is .*\n# isoflop sweep ")
    read = load_laws(laws)
    target = forecast(read, [given], level=level)[0]["predictions"][0]
    if target["center"] is None:
        raise RecipeError(f"no target: {target['reason']}")
    planned = None if ladder is None else planned_ladder(ladder, (), calibrate=calibrate)
    offers = None if planned is None else grow.offered_by(planned, read, target["total_flops"])
    made = next_cells(read, target[read.scale], target["n_tokens"], width=width, most=cells, level=level, offers=offers)
    if made.runs:
        recipe = grow.ladder_of(read, made.runs) if planned is None else grow.grown(planned, read, made.runs).recipe
        write_recipe(out, recipe, header=f"{made.verdict}\nisoflop sweep {out}")
    report_found(made.tree(), json, f"recipe in {out}" if made.runs else "no recipe: nothing to run", [])
    print_next(made)
    print_warnings(far_beyond(read, [target["total_flops"]]))


def planned_ladder(recipe: Path, overrides: tuple[str, ...], *, calibrate: bool, engine: "Engine | None" = None) -> Any:
    """The cells of a ladder recipe; with `calibrate` at the measured speed of the workers of the engine."""
    from isoflop.scaling.sweep.ladder import LadderRecipe, ladder_on_tokens, plan_ladder
    from isoflop.scaling.sweep.recipe import check

    asked = load_recipe(recipe, LadderRecipe, overrides)
    check(asked)
    loaded, data_sha256 = ladder_on_tokens(asked)
    given, rows = read_tree(recipe, overrides).get("model", {}).get("vocab_size"), loaded.model.vocab_size
    if given not in (None, rows):
        raise RecipeError(
            f"model.vocab_size = {given} but the tokens of {asked.data.tokens} have {rows} rows, padding included; "
            f"leave model.vocab_size out, or set it to {rows}"
        )
    timed = bool(loaded.ladder.minutes or loaded.ladder.gpu_hours)
    if timed and not calibrate:
        raise RecipeError("ladder.minutes and ladder.gpu_hours need a measurement of the workers: leave --calibrate on")
    if not timed:  # what cannot be is refused before seconds are spent on a cluster, or on measuring
        planned = plan_ladder(loaded, data_sha256=data_sha256)
        if not calibrate and engine is None:
            return planned
    from isoflop.scaling.sweep.calibrate import measure_ladder

    with contextlib.nullcontext(engine) if engine else _opened(loaded, loaded.engine) as working:
        at_once = dataclasses.replace(loaded.ladder, workers=working.slots())
        loaded = dataclasses.replace(loaded, ladder=at_once)
        speed = measure_ladder(loaded, working) if calibrate else None
    return plan_ladder(loaded, speed, data_sha256=data_sha256)


def _opened(recipe: "LadderRecipe", section: EngineSection) -> "Engine":
    threads, device = recipe.train.threads or 1, recipe.train.device
    return open_engine(section, workers=recipe.ladder.workers, threads=threads, device=device)


def _engine_section(section: EngineSection, kind: Kind | None, cluster: str | None) -> EngineSection:
    """That of the recipe, with what the options replace."""
    section = dataclasses.replace(section, kind=kind or section.kind, ray_address=cluster or section.ray_address)
    if section.kind == "local":
        refuse_unused("without --engine ray", cluster=cluster)
    return section


def _same_ladder(recipe: Path, overrides: tuple[str, ...], fixed: Path) -> bool:
    """Whether `fixed` is what this recipe became when its time was turned into budgets, or when it grew.

    Where and how many at a time the cells run may have changed.
    """
    from isoflop.scaling.sweep.ladder import LadderRecipe, ladder_on_tokens

    asked, _ = ladder_on_tokens(load_recipe(recipe, LadderRecipe, overrides))
    before = load_recipe(fixed, LadderRecipe)
    budgets = asked.ladder.budgets or before.ladder.budgets
    cells = before.ladder.cells if set(asked.ladder.cells) <= set(before.ladder.cells) else asked.ladder.cells
    workers = before.ladder.workers
    section = dataclasses.replace(
        asked.ladder, budgets=budgets, minutes=0.0, gpu_hours=0.0, cells=cells, workers=workers
    )
    return dataclasses.replace(asked, ladder=section, engine=before.engine) == before
