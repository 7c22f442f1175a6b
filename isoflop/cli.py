"""The command line: stage -> function; the order of the rows is the data flow. It prints through isoflop.terminal."""

import dataclasses
import difflib
import errno
import json as json_module
import logging
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from isoflop.cli_serving import chat, generate
from isoflop.errors import IsoflopError, RecipeError
from isoflop.exchange import export, import_
from isoflop.lighting import optics_demo, optics_inspect
from isoflop.optics.config import OpticsError
from isoflop.options import Json, Out, Overrides, Recipe, Writes, arranged, checked
from isoflop.recipe import (
    NotNegative,
    NotNegativeInt,
    Positive,
    PositiveInt,
    Processes,
    Range,
    Seed,
    load_recipe,
    write_json,
    write_recipe,
)
from isoflop.running import extend, passkey, train
from isoflop.seeing import STAGES as IMAGING
from isoflop.terminal import (
    Bar,
    corpus_rows,
    flat,
    print_rows,
    print_table,
    print_warnings,
    report_found,
    say,
    stop_on_signal,
)

Laws = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="LAWS", help="laws.json, or a published law")]


def corpus_build(
    recipe: Recipe, overrides: Overrides = (), /, *, out: Out = Path("runs/corpus"), json: Json = None
) -> None:
    """Raw text -> clean corpus: read, deduplicate, filter, hold out validation, remix, report."""
    from isoflop.corpus.build import CorpusRecipe, build_corpus

    with Bar("B") as bar:
        found = build_corpus(load_recipe(recipe, CorpusRecipe, overrides), out, on_progress=bar.stage)
    state = " (was up to date)" if found.get("reused") else f"; report in {out / 'report.html'}"
    report_found(found, json, f"corpus in {out}{state}", corpus_rows(found))


def tokens(
    recipe: Recipe,
    overrides: Overrides = (),
    /,
    *,
    corpus: Annotated[Path, tyro.conf.arg(metavar="DIR", help="corpus folder")] = Path("runs/corpus"),
    out: Out = Path("runs/tokens"),
    json: Json = None,
) -> None:
    """Clean corpus -> tokenizer and token shards."""
    from isoflop.tokens.shards import TokensRecipe, build_tokens

    with Bar("B") as bar:
        found = build_tokens(corpus, out, load_recipe(recipe, TokensRecipe, overrides), on_progress=bar.stage)
    rows = [
        (f"{s['split']} {s['domain']}", f"{s['n_tokens']:,} tokens, {s['n_bytes']:,} bytes") for s in found["shards"]
    ]
    rows += [(f"bytes per token, {name}", f"{value:.2f}") for name, value in found.get("compression", {}).items()]
    rows.append(("vocabulary", f"{found['vocab_size']:,} rows, {found['bytes_per_token']:.3f} bytes per token"))
    report_found(found, json, f"tokens in {out}" + (" (was up to date)" if found.get("reused") else ""), rows)


def inspect(
    recipe: Recipe,
    overrides: Overrides = (),
    /,
    *,
    micro_batch: Annotated[PositiveInt, tyro.conf.arg(help="sequences of a forward pass, for the memory estimate")] = 1,
    world_size: Annotated[PositiveInt, tyro.conf.arg(help="devices that share the optimizer state")] = 1,
    json: Json = None,
) -> None:
    """Count a model: parameters, FLOPs per token by convention, memory, KV bytes per token."""
    from isoflop.model.accounting import inspect as count
    from isoflop.training.pretrain_recipe import PretrainRecipe

    found = count(load_recipe(recipe, PretrainRecipe, overrides).model, micro_batch=micro_batch, world_size=world_size)
    report_found(found, json, f"{recipe}", list(flat(found)))


def ladder(
    recipe: Recipe,
    overrides: Overrides = (),
    /,
    *,
    dry_run: Annotated[bool, tyro.conf.arg(help="write nothing, print the plan of the sweep")] = False,
    calibrate: Annotated[bool, tyro.conf.arg(help="measure this device to state hours")] = True,
    out: Out = Path("runs/sweep"),
    json: Json = None,
) -> None:
    """Budgets x sizes -> cells of a sweep, with runs, FLOPs and hours, before anything runs."""
    planned = _ladder(recipe, overrides, calibrate=calibrate)
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
    overrides: Overrides = (),
    /,
    *,
    out: Out = Path("runs/sweep"),
    keep_weights: Annotated[bool, tyro.conf.arg(help="keep the weights of every cell")] = False,
    calibrate: Annotated[bool, tyro.conf.arg(help="measure this device first, to state hours")] = True,
    json: Json = None,
) -> None:
    """Run the missing cells of a ladder, sharing trunks, one record per cell."""
    from isoflop.scaling.ladder import resolved
    from isoflop.scaling.sweep import run_sweep

    fixed = out / "ladder.toml"
    going_on = fixed.is_file() and _same_ladder(recipe, overrides, fixed)
    if going_on:
        print(f"going on with {fixed}")
        planned = _ladder(fixed, (), calibrate=False)
    else:
        planned = _ladder(recipe, overrides, calibrate=calibrate)
        if not (out / "ladder.json").exists():  # else run_sweep must accept it first
            write_recipe(fixed, resolved(planned), header=f"the ladder of this sweep, from {recipe}")
    print_rows(flat(planned.summary()))
    print_warnings(planned.warnings)
    section = planned.recipe
    with Bar("FLOP") as bar, stop_on_signal() as stop:
        records = run_sweep(
            list(planned.cells),
            out,
            study=section.study,
            workers=section.ladder.workers,
            threads=section.train.threads or 1,
            keep_weights=keep_weights,
            on_progress=bar.sweep,
            should_stop=stop,
        )
    if not going_on:
        write_recipe(fixed, resolved(planned), header=f"the ladder of this sweep, from {recipe}")
    diverged = [record.run_id for record in records if record.status == "diverged"]
    found = {
        "records": str(out / "records.jsonl"),
        "cells": len(planned.cells),
        "recorded": len(records),
        "diverged": diverged,
        **json_module.loads((out / "sweep.json").read_text(encoding="utf-8")),
    }
    report_found(found, json, f"{len(records)} of {len(planned.cells)} cells in {out / 'records.jsonl'}", [])
    if len(records) < len(planned.cells):
        raise KeyboardInterrupt


def fit(
    tables: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TABLE")],
    /,
    *,
    law: Annotated[
        Literal["all", "parabola", "surface", "lstar", "hyper", "power", "experts"],
        tyro.conf.arg(help="one law; all fits every law to the records of a sweep and writes laws.json"),
    ] = "all",
    map: Annotated[str, tyro.conf.arg(metavar="OURS=THEIRS,...", help="column names; products: a=b*c")] = "",
    where: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(metavar="COLUMN(=|<|>)VALUE", help="keep these rows; repeat to narrow"),
    ] = (),
    drop_highest_loss: NotNegativeInt = 0,
    weights: Annotated[str, tyro.conf.arg(metavar="COLUMN", help="weights; a column *_std weights by 1/std^2")] = "",
    bootstrap: Annotated[NotNegativeInt, tyro.conf.arg(help="resamples")] = 1000,
    interpolation: Annotated[
        Literal["auto", "parabola", "akima"], tyro.conf.arg(help="how the bottom of a curve is found")
    ] = "auto",
    group: Annotated[Literal["setting", "row", "budget"], tyro.conf.arg(help="what a resample draws")] = "setting",
    at_flops: Annotated[Positive | None, tyro.conf.arg(help="state the optimum at this compute")] = None,
    form: Annotated[
        Literal["", "clark", "joint", "granularity", "leverage"],
        tyro.conf.arg(help="law of experts; empty: every one that the columns allow"),
    ] = "",
    seed: Seed = 0,
    out: Annotated[Path, Writes(".json"), tyro.conf.arg(metavar="FILE", help="laws file of --law all")] = Path(
        "runs/laws.json"
    ),
    json: Json = None,
) -> None:
    """Records or any table of runs -> fitted laws with intervals."""
    from isoflop.scaling.fit import run_fit

    if law == "all":
        from isoflop.scaling.law_set import fit_law_set
        from isoflop.scaling.records import read_records

        _refuse_unused(
            "with --law all, which fits every law to whole records of a sweep: name one law, as in --law parabola",
            map=map,
            where=where,
            drop_highest_loss=drop_highest_loss,
            weights=weights,
            at_flops=at_flops,
            form=form,
            interpolation=interpolation != "auto",
            group=group != "setting",
        )
        records = [record for table in tables for record in read_records(table)]
        found = fit_law_set(records, bootstrap=bootstrap, seed=seed)
        write_json(out, found)
        shown = {key: value for key, value in found.items() if key != "resamples"}
        report_found(found, json, f"laws in {out}", list(flat(shown, depth=2)))
    else:
        _refuse_unused(
            f"with --law {law}",
            at_flops=at_flops if law != "surface" else None,
            group=group != "setting" and law != "surface",
            interpolation=interpolation != "auto" and law not in ("parabola", "lstar"),
            form=form if law != "experts" else "",
            out=out != Path("runs/laws.json"),
        )
        found = run_fit(
            list(tables),
            law,
            mapping=map,
            where=where,
            drop_highest_loss=drop_highest_loss,
            weights=weights,
            bootstrap=bootstrap,
            seed=seed,
            interpolation=interpolation,
            group=group,
            at_flops=at_flops,
            form=form,
        )
        report_found(found, json, f"{law} law of {', '.join(map_names(tables))}", list(flat(found, depth=3)))
    print_warnings(found.get("warnings", ()))


def plan(
    laws: Laws = "runs/laws.json",
    /,
    *,
    budget_flops: Annotated[Positive | None, tyro.conf.arg(help="training FLOPs as the laws count them")] = None,
    gpu_hours: Annotated[Positive | None, tyro.conf.arg(help="instead of FLOPs; needs --hardware")] = None,
    hardware: Annotated[str, tyro.conf.arg(help="for example h100")] = "",
    n_gpus: PositiveInt = 1,
    utilisation: Annotated[
        float, Range(above=0, at_most=1), tyro.conf.arg(help="achieved share of the peak; measure it")
    ] = 0.4,
    memory_gib: Annotated[NotNegative, tyro.conf.arg(help="of one device; 0: from --hardware")] = 0.0,
    zero_stage: Annotated[int, Range(at_least=0, at_most=3), tyro.conf.arg(help="what is sharded: 0, 1, 2, 3")] = 0,
    price: Annotated[NotNegative, tyro.conf.arg(help="per GPU-hour")] = 0.0,
    max_micro_batch: Annotated[PositiveInt, tyro.conf.arg(help="most sequences of a forward pass on a device")] = 16,
    ladder: Annotated[
        Path | None,
        tyro.conf.arg(metavar="RECIPE", help="the sweep's ladder.toml: family, data, schedule, batch and rate"),
    ] = None,
    dense: Annotated[
        Path | None,
        tyro.conf.arg(metavar="LAWS", help="laws of a dense sweep: what is this family worth over it?"),
    ] = None,
    vocab_size: Annotated[PositiveInt | None, tyro.conf.arg(help="default: that of --ladder, else 102,400")] = None,
    seq_len: Annotated[PositiveInt | None, tyro.conf.arg(help="default: that of --ladder, else 4,096")] = None,
    unique_tokens: Annotated[Positive | None, tyro.conf.arg(help="tokens of the corpus: repeats count less")] = None,
    max_epochs: Annotated[Positive | None, tyro.conf.arg(help="most passes over unique_tokens")] = None,
    serve_tokens: Annotated[
        NotNegative, tyro.conf.arg(help="tokens to be served: smaller, longer-trained models")
    ] = 0.0,
    hyper: Annotated[str, tyro.conf.arg(help="law of batch and rate by name; default: that of LAWS")] = "",
    level: Annotated[float, Range(at_least=0.5, at_most=0.999), tyro.conf.arg(help="of the interval")] = 0.9,
    out: Annotated[Path, Writes(".toml"), tyro.conf.arg(metavar="FILE", help="recipe that isoflop train runs")] = Path(
        "runs/plan.toml"
    ),
    json: Json = None,
) -> None:
    """Laws and a budget -> shape, tokens, batch, rate, memory, hours, and the predicted loss."""
    from isoflop.scaling.plan import Machine, make_plan

    template: dict[str, Any] | None = None
    law: Any = hyper or None
    exact: float | None = None
    kind: dict[str, Any] = {}
    if ladder is not None:
        _refuse_unused("with --ladder, which says it", vocab_size=vocab_size, seq_len=seq_len)
        swept = _ladder(ladder, (), calibrate=False)
        cell: dict[str, Any] = swept.cells[-1].recipe
        template, vocab_size, seq_len = cell, cell["model"]["vocab_size"], cell["model"]["seq_len"]
        law = law or swept.recipe.hyper
        kind["family"] = swept.recipe.family
        exact = max(cell.total_flops_exact for cell in swept.cells)
    made = make_plan(
        laws,
        budget_flops=budget_flops,
        gpu_hours=gpu_hours,
        machine=Machine(
            n_gpus=n_gpus,
            hardware=hardware,
            utilisation=utilisation,
            memory_gib=memory_gib,
            zero_stage=zero_stage,
            max_micro_batch=max_micro_batch,
            price_per_gpu_hour=price,
        ),
        vocab_size=vocab_size or 102_400,
        seq_len=seq_len or 4096,
        hyper=law,
        template=template,
        largest_sweep_flops_exact=exact,
        level=level,
        unique_tokens=unique_tokens,
        max_epochs=max_epochs,
        serve_tokens=serve_tokens,
        dense_laws=dense,
        **kind,
    )
    made.write(out)
    found = made.tree()
    report_found(found, json, f"recipe in {out}; run it: isoflop train {out}", made.rows())
    print_warnings(made.warnings)


def score(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help="folder of a finished train")],
    /,
    *,
    records: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help="append the scored target here")] = None,
    json: Json = None,
) -> None:
    """A finished run -> predicted against measured."""
    from isoflop.scaling.target import score_run

    found = score_run(run, records=records)
    report_found(found, json, f"score in {run / 'score.json'}", list(flat(found)))


def compare(
    a: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LAWS_A")],
    b: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LAWS_B")],
    /,
    *,
    budget_flops: Annotated[Positive | None, tyro.conf.arg(help="where to compare; default: largest of both")] = None,
    json: Json = None,
) -> None:
    """Two fits -> compute multiplier with interval, test of the exponents, a plain verdict."""
    from isoflop.scaling.compare import compare_files

    found = compare_files(a, b, budget_flops=budget_flops)
    report_found(found, json, found["verdict"], list(flat({k: v for k, v in found.items() if k != "verdict"}, depth=2)))


def report(
    study: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="STUDY", help="folder of a study or of a run")],
    /,
    *,
    out: Annotated[
        Path | None, Writes(".html"), tyro.conf.arg(metavar="FILE", help="default: STUDY/report.html")
    ] = None,
    figures: Annotated[
        Path | None, Writes("folder"), tyro.conf.arg(metavar="DIR", help="also write every figure as SVG and PNG")
    ] = None,
    json: Json = None,
) -> None:
    """Records, laws, plan and score of a study -> one HTML page, and its figures."""
    from isoflop.scaling.folder import report_study

    found = report_study(study, out or study / "report.html", figures=figures)
    report_found(found, json, f"report in {found['report']}", [])


def demo(
    *,
    out: Out = Path("demo"),
    minutes: Annotated[Positive, tyro.conf.arg(help="for the whole demo after set-up")] = 15.0,
    seed: Seed = 0,
    workers: Annotated[Processes, tyro.conf.arg(help="processes of the sweep; 0: one per core, at most 4")] = 0,
    json: Json = None,
) -> None:
    """Everything on this machine: text, sweep, laws, a prediction, the run that tests it, a report."""
    from isoflop.demo import run_demo

    with stop_on_signal() as stop:
        found = run_demo(out, minutes=minutes, seed=seed, workers=workers, say=say, bar=Bar, should_stop=stop)
    report_found(found, json, f"report in {out / 'report.html'}", list(flat(found)))


STAGES = {
    "corpus build": corpus_build,
    "tokens": tokens,
    "inspect": inspect,
    "ladder": ladder,
    "sweep": sweep,
    "fit": fit,
    "plan": plan,
    "train": train,
    "extend": extend,
    "passkey": passkey,
    "generate": generate,
    "chat": chat,
    "score": score,
    "export": export,
    "import": import_,
    "compare": compare,
    "report": report,
    "demo": demo,
    "optics inspect": optics_inspect,
    "optics demo": optics_demo,
    **{f"imaging {name}": stage for name, stage in IMAGING.items()},
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 2 bad input (one message), 130 stopped by the user after saving."""
    logging.basicConfig(level=logging.WARNING, format="isoflop: %(message)s", stream=sys.stderr)
    logging.getLogger("isoflop").setLevel(logging.INFO)
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--version"]:
        say(f"isoflop {version('isoflop')}")
        return
    try:
        group = _group_of(arguments)
        arguments = arranged(STAGES, arguments)
        tyro.extras.subcommand_cli_from_dict(
            {
                name.removeprefix(f"{group} "): checked(stage)
                for name, stage in STAGES.items()
                if name.startswith(group)
            },
            args=arguments[1:] if group else arguments,
            prog=f"isoflop {group}".strip(),
            description="Know the result before you pay for the run. The commands are in the order of the data flow; "
            "--version says which isoflop this is.",
            sort_subcommands=False,
        )
    except (IsoflopError, OpticsError) as error:
        print(f"isoflop: error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        way_out = "make room (or give another folder)" if full else "give another path"
        print(
            f"isoflop: error: {error}; what was saved before is intact: {way_out} and run the same command again",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("isoflop: stopped; what was done is saved, the same command goes on from there", file=sys.stderr)
        sys.exit(130)


def _group_of(arguments: list[str]) -> str:
    """First of two words of a command (`corpus build`), or nothing. Raises RecipeError where there is no such one."""
    group, second = (*arguments, "", "")[:2]
    words = {name.split(" ")[0] for name in STAGES}
    if not arguments:
        raise RecipeError(f"isoflop is followed by a command: {', '.join(STAGES)}; isoflop --help says what they do")
    if group.startswith("-") and group not in ("-h", "--help"):
        raise RecipeError(f"{group} is not an option of isoflop; isoflop --help lists what there is")
    if group not in words and not group.startswith("-"):
        near = difflib.get_close_matches(group, words, 1)
        hint = f"did you mean {near[0]}?" if near else "isoflop --help lists what there is"
        raise RecipeError(f"{group or repr(group)} is not a command of isoflop; {hint}")
    names = [name.removeprefix(f"{group} ") for name in STAGES if name.startswith(f"{group} ")]
    if not group or not names:
        return ""
    if second not in (*names, "-h", "--help"):
        given = second or "nothing"
        raise RecipeError(
            f"isoflop {group} is followed by {' or '.join(names)}, not by {given}: isoflop {group} {names[0]} ..."
        )
    return group


_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
)
"""What the disk refuses is for the user to cure; any other error of the system is a bug and keeps its traceback."""


def _refuse_unused(why: str, **options: Any) -> None:
    """Options that this use of a command leaves aside. Raises RecipeError for the first that was given."""
    for name, value in options.items():
        if value:
            raise RecipeError(f"--{name.replace('_', '-')} has no meaning {why}; leave it out")


def _ladder(recipe: Path, overrides: tuple[str, ...], *, calibrate: bool) -> Any:
    from isoflop.scaling.ladder import LadderRecipe, plan_ladder
    from isoflop.scaling.ladder_recipe import check
    from isoflop.scaling.target import ladder_on_tokens

    asked = load_recipe(recipe, LadderRecipe, overrides)
    check(asked)
    loaded, data_sha256 = ladder_on_tokens(asked)
    timed = bool(loaded.ladder.minutes or loaded.ladder.gpu_hours)
    if calibrate and not timed:
        plan_ladder(loaded, data_sha256=data_sha256)  # what is wrong is said before seconds are spent on measuring
    if not calibrate:
        if timed:
            raise RecipeError(
                "ladder.minutes and ladder.gpu_hours need a measurement of this device: leave --calibrate on"
            )
        return plan_ladder(loaded, data_sha256=data_sha256)
    from isoflop.scaling.calibrate import measure_ladder

    return plan_ladder(loaded, measure_ladder(loaded), data_sha256=data_sha256)


def _same_ladder(recipe: Path, overrides: tuple[str, ...], fixed: Path) -> bool:
    """Whether `fixed` is what this recipe became when its time was turned into budgets."""
    from isoflop.scaling.ladder import LadderRecipe
    from isoflop.scaling.target import ladder_on_tokens

    asked, _ = ladder_on_tokens(load_recipe(recipe, LadderRecipe, overrides))
    before = load_recipe(fixed, LadderRecipe)
    budgets = asked.ladder.budgets or before.ladder.budgets
    section = dataclasses.replace(asked.ladder, budgets=budgets, minutes=0.0, gpu_hours=0.0)
    return dataclasses.replace(asked, ladder=section) == before


def map_names(paths: tuple[Path, ...]) -> list[str]:
    """File names for a headline."""
    return [path.name for path in paths]


if __name__ == "__main__":
    main()
