"""The commands of a scaling study after its runs: fit, predict, plan, score, compare, report; and the demo."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from isoflop.cli.arguments import Json, Out, Writes, refuse_unused, require_own, require_writable
from isoflop.cli.console import Bar, flat, print_warnings, report_found, say, stop_on_signal
from isoflop.cli.sweep import planned_ladder
from isoflop.errors import PlanError, RecipeError
from isoflop.recipe import MOST, Amount, NotNegative, NotNegativeInt, Positive, PositiveInt, Processes, Range, Seed

SameHeldOut = Annotated[bool, Parameter(help="vouch for one held-out text where laws do not say which", negative=())]


def fit(
    *tables: Annotated[Path, Parameter("TABLE", help="records.jsonl, or a table of runs", required=True)],
    law: Annotated[
        Literal[
            "all", "parabola", "surface", "lstar", "hyper", "power", "experts", "repeated", "overtraining", "error"
        ],
        Parameter(help="one law; all fits every law and writes laws.json"),
    ] = "all",
    map: Annotated[
        str,
        Parameter(
            metavar="OURS=THEIRS,...", help="column names, as n_params=params,loss_nats=val/loss; products: a=b*c"
        ),
    ] = "",
    where: Annotated[
        tuple[str, ...], Parameter(metavar="COLUMN(=|<|>)VALUE", help="keep these rows; repeat to narrow")
    ] = (),
    drop_highest_loss: Annotated[NotNegativeInt, Parameter(help="runs of highest loss to leave out")] = 0,
    weights: Annotated[str, Parameter(metavar="COLUMN", help="weights; a column *_std weights by 1/std^2")] = "",
    bootstrap: Annotated[NotNegativeInt, Parameter(help="resamples")] = 1000,
    interpolation: Annotated[
        Literal["auto", "parabola", "akima"], Parameter(help="how the bottom of a curve is found")
    ] = "auto",
    group: Annotated[Literal["setting", "row", "budget"], Parameter(help="what a resample draws")] = "setting",
    at_flops: Annotated[Amount | None, Parameter(help="state the optimum at this compute")] = None,
    form: Annotated[
        Literal["", "clark", "joint", "granularity", "leverage"],
        Parameter(help="law of experts; empty: every one that the columns allow"),
    ] = "",
    base: Annotated[
        str, Parameter(metavar="LAWS", help="of fresh tokens, for --law repeated; default: fitted to rows of one pass")
    ] = "",
    seed: Seed = 0,
    out: Annotated[Path, Writes(".json"), Parameter(metavar="FILE", help="laws file of --law all")] = Path(
        "runs/laws.json"
    ),
    json: Json = None,
) -> None:
    """Records or any table of runs (CSV, JSON, Excel, Parquet) -> fitted laws with intervals."""
    from isoflop.cli.fit_summary import print_law, print_laws
    from isoflop.scaling.fit.run import fit_files, run_fit

    chosen: dict[str, Any] = {"mapping": map, "where": where, "drop_highest_loss": drop_highest_loss}
    chosen |= {"weights": weights, "bootstrap": bootstrap, "seed": seed}
    if law == "all":
        refuse_unused(
            "with --law all: name one law, as in --law parabola",
            at_flops=at_flops,
            form=form,
            base=base,
            interpolation=interpolation != "auto",
            group=group != "setting",
        )
        require_writable("--out", out, ".json")  # of options that are not given nothing is checked yet
        laws = fit_files(list(tables), **chosen)
        laws.write(out)
        report_found(laws.tree(), json, f"laws in {out}", [])
        print_laws(laws, out, tables)
    else:
        refuse_unused(
            f"with --law {law}",
            at_flops=at_flops if law not in ("surface", "lstar") else None,
            group=group != "setting" and law != "surface",
            interpolation=interpolation != "auto" and law not in ("parabola", "lstar"),
            form=form if law != "experts" else "",
            base=base if law != "repeated" else "",
            out=out != Path("runs/laws.json"),
        )
        chosen |= {"interpolation": interpolation, "group": group, "at_flops": at_flops, "form": form, "base": base}
        found = run_fit(list(tables), law, **chosen)
        report_found(found, json, f"{law} law of {', '.join(table.name for table in tables)}", [])
        print_law(found)


def predict(
    laws: Annotated[str, Parameter(metavar="LAWS", help="laws.json, as isoflop fit writes it")] = "runs/laws.json",
    /,
    *,
    n_params: Annotated[Amount | None, Parameter(help="of a run, as the laws count them")] = None,
    flops_per_token: Annotated[Amount | None, Parameter(help="of a run, where the laws count size so")] = None,
    n_tokens: Annotated[Amount | None, Parameter(help="of a run")] = None,
    budget_flops: Annotated[Amount | None, Parameter(help="alone: a run at the optimum of this compute")] = None,
    runs: Annotated[Path | None, Parameter(metavar="TABLE", help="one prediction for every row")] = None,
    map: Annotated[str, Parameter(metavar="OURS=THEIRS,...", help="column names of TABLE")] = "",
    level: Annotated[float, Range(at_least=0.5, at_most=0.999), Parameter(help="of the interval")] = 0.9,
    json: Json = None,
) -> None:
    """Laws and a run, a budget or a table of runs -> the loss with its interval, the laws side by side."""
    from isoflop.cli.fit_summary import print_predictions
    from isoflop.scaling.plan.forecast import far_beyond, forecast
    from isoflop.scaling.published import load_laws

    sizes = {"n_params": n_params, "flops_per_token": flops_per_token, "n_tokens": n_tokens}
    given = {name: value for name, value in (sizes | {"total_flops": budget_flops}).items() if value is not None}
    if runs is None:
        refuse_unused("without --runs", map=map)
        if not given:
            raise RecipeError("isoflop predict needs --n-params and --n-tokens, or --budget-flops, or --runs TABLE")
    else:
        refuse_unused("with --runs", **{name.replace("total", "budget"): value for name, value in given.items()})
    read = load_laws(laws)
    found, inferences = forecast(read, [given] if runs is None else runs, mapping=map, level=level)
    done = sum(row["center"] is not None for row in found["predictions"])
    if runs is None and not done:
        raise RecipeError(f"no prediction: {found['predictions'][0]['reason']}")
    report_found(found, json, f"{done} of {len(found['predictions'])} runs predicted", [])
    print_predictions(found, inferences)
    print_warnings(far_beyond(read, (row["total_flops"] for row in found["predictions"] if row["center"])))


def plan(
    laws: Annotated[str, Parameter(metavar="LAWS", help="laws.json, or a published law")] = "runs/laws.json",
    /,
    *,
    budget_flops: Annotated[Amount | None, Parameter(help="training FLOPs as the laws count them")] = None,
    gpu_hours: Annotated[Amount | None, Parameter(help="instead of FLOPs: hours x devices; needs --hardware")] = None,
    hours: Annotated[Amount | None, Parameter(help="instead: on all --n-gpus together")] = None,
    days: Annotated[Amount | None, Parameter(help="instead: on all --n-gpus together")] = None,
    hardware: Annotated[str, Parameter(help="for example h100")] = "",
    n_gpus: Annotated[PositiveInt, Parameter(alias="--gpus", help="devices that train")] = 1,
    utilisation: Annotated[
        float, Range(above=0, at_most=1), Parameter(help="achieved share of the peak; measure it")
    ] = 0.4,
    memory_gib: Annotated[NotNegative, Parameter(help="of one device; 0: from --hardware")] = 0.0,
    zero_stage: Annotated[
        int | None,
        Range(at_least=0, at_most=3),
        Parameter(help="what is sharded: 0, 1, 2, 3; default: as little as fits"),
    ] = None,
    price: Annotated[NotNegative, Parameter(help="per GPU-hour")] = 0.0,
    max_micro_batch: Annotated[PositiveInt, Parameter(help="most sequences of a forward pass on a device")] = 16,
    ladder: Annotated[
        Path | None, Parameter(metavar="RECIPE", help="the sweep's ladder.toml: family, data, schedule, batch and rate")
    ] = None,
    dense: Annotated[
        Path | None, Parameter(metavar="LAWS", help="laws of a dense sweep: what is this family worth over it?")
    ] = None,
    vocab_size: Annotated[PositiveInt | None, Parameter(help="default: that of --ladder, else 102,400")] = None,
    seq_len: Annotated[PositiveInt | None, Parameter(help="default: that of --ladder, else 4,096")] = None,
    unique_tokens: Annotated[
        Amount | None, Parameter(alias="--tokens", help="tokens at hand, of the corpus: repeats count less")
    ] = None,
    max_epochs: Annotated[Amount | None, Parameter(help="most passes over unique_tokens")] = None,
    serve_tokens: Annotated[
        float, Range(at_least=0, at_most=MOST), Parameter(help="tokens to be served: smaller, longer-trained models")
    ] = 0.0,
    same_held_out: SameHeldOut = False,
    hyper: Annotated[str, Parameter(help="law of batch and rate by name; default: that of LAWS")] = "",
    level: Annotated[float, Range(at_least=0.5, at_most=0.999), Parameter(help="of the interval")] = 0.9,
    out: Annotated[Path, Writes(".toml"), Parameter(metavar="FILE", help="recipe that isoflop train runs")] = Path(
        "runs/plan.toml"
    ),
    json: Json = None,
) -> None:
    """Laws and a budget -> shape, tokens, batch, rate, memory, hours, and the predicted loss."""
    from isoflop.scaling.plan import choose
    from isoflop.scaling.plan.curve import sweep_curves
    from isoflop.scaling.report.plan_rows import next_step, plan_rows

    if ladder is not None:
        refuse_unused("with --ladder, which sets both", vocab_size=vocab_size, seq_len=seq_len)
    if dense is None:
        refuse_unused("without --dense, whose laws are compared", same_held_out=same_held_out)
    if sum(budget is not None for budget in (budget_flops, gpu_hours, hours, days)) != 1:
        raise RecipeError(
            "isoflop plan needs exactly one of --budget-flops, --gpu-hours, --hours and --days, for example "
            "--budget-flops 1e21, or --days 14 --gpus 8 --hardware h100"
        )
    require_own("--out", out, r"# isoflop train .*\n# \S+ FLOPs, \d+ steps\n")
    if hours or days:
        gpu_hours = n_gpus * (hours or 24 * (days or 0.0))
    made = choose.plan(
        laws,
        budget_flops=budget_flops,
        gpu_hours=gpu_hours,
        machine=choose.Machine(
            n_gpus=n_gpus,
            hardware=hardware,
            utilisation=utilisation,
            memory_gib=memory_gib,
            zero_stage=zero_stage,
            max_micro_batch=max_micro_batch,
            price_per_gpu_hour=price,
        ),
        ladder=None if ladder is None else planned_ladder(ladder, (), calibrate=False),
        vocab_size=vocab_size,
        seq_len=seq_len,
        hyper=hyper or None,
        level=level,
        unique_tokens=unique_tokens,
        max_epochs=max_epochs,
        serve_tokens=serve_tokens,
        dense_laws=dense,
        same_held_out=same_held_out,
        curves=None if ladder is None else sweep_curves(ladder.parent),
    )
    headline = "no recipe: it does not fit"
    if not made.memory.refusal:
        made.write(out)
        headline = f"recipe in {out}; {next_step(made, out)}"
    report_found(made.tree(), json, headline, plan_rows(made))
    print_warnings(made.warnings)
    if made.memory.refusal:
        raise PlanError(made.memory.refusal)


def score(
    run: Annotated[Path, Parameter(metavar="RUN", help="folder of a finished train")],
    /,
    *,
    records: Annotated[Path | None, Parameter(metavar="FILE", help="for the target; default: the study's")] = None,
    json: Json = None,
) -> None:
    """A finished run -> predicted against measured."""
    from isoflop.scaling.plan.score import score_run

    found = dataclasses.asdict(score_run(run, records=records))
    report_found(found, json, f"score in {run / 'score.json'}", list(flat(found, depth=4)))


def compare(
    a: Annotated[Path, Parameter("LAWS_A", metavar="LAWS_A", help="laws.json of a sweep, as isoflop fit writes it")],
    b: Annotated[Path, Parameter("LAWS_B", metavar="LAWS_B", help="that of a sweep with one thing changed")],
    /,
    *,
    budget_flops: Annotated[Amount | None, Parameter(help="where to compare; default: largest of both")] = None,
    records: Annotated[
        tuple[Path, Path] | None, Parameter(metavar="A B", help="of both sweeps: the difference of equal cells too")
    ] = None,
    figure: Annotated[
        Path | None, Writes(".png"), Parameter(metavar="FILE", help="also draw the runs of --records and the laws")
    ] = None,
    same_held_out: SameHeldOut = False,
    json: Json = None,
) -> None:
    """Two fits -> compute multiplier with interval, test of the exponents, a plain verdict."""
    from isoflop.scaling.plan.compare import compare_files
    from isoflop.scaling.report.plan_rows import comparison_rows

    if records is None:
        refuse_unused("without --records, whose runs it shows", figure=figure)
    made = compare_files(a, b, budget_flops=budget_flops, same_held_out=same_held_out, records=records)
    if figure is not None and records is not None:
        from isoflop.pages.plot import save
        from isoflop.scaling.report.comparison_figure import comparison_figure

        save(comparison_figure((a, b), records), figure)
    report_found(made.tree(), json, made.verdict, comparison_rows(made))
    print_warnings(made.warnings)


def report(
    study: Annotated[Path, Parameter(metavar="STUDY", help="folder of a study or of a run")] = Path("runs"),
    /,
    *,
    out: Annotated[Path | None, Writes(".html"), Parameter(metavar="FILE", help="default: STUDY/report.html")] = None,
    figures: Annotated[
        Path | None, Writes("folder"), Parameter(metavar="DIR", help="also write every figure as SVG and PNG")
    ] = None,
    json: Json = None,
) -> None:
    """Records, laws, plan and score of a study -> one HTML page, and its figures."""
    from isoflop.scaling.report.folder import report_study

    found = report_study(study, out or study / "report.html", figures=figures)
    report_found(found, json, f"report in {found['report']}", [])


def demo(
    *,
    out: Out = Path("demo"),
    minutes: Annotated[Positive, Parameter(help="for the whole demo after set-up")] = 15.0,
    seed: Seed = 0,
    workers: Annotated[Processes, Parameter(help="processes of the sweep; 0: one per core, at most 4")] = 0,
    json: Json = None,
) -> None:
    """Everything on this machine: text, sweep, laws, a prediction, the run that tests it, a report."""
    from isoflop.demo import run_demo

    with stop_on_signal() as stop:
        found = run_demo(out, minutes=minutes, seed=seed, workers=workers, say=say, bar=Bar, should_stop=stop)
    report_found(found, json, f"report in {out / 'report.html'}", list(flat(found)))
