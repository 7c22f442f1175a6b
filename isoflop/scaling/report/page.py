"""One self-contained HTML page about a study: the verdict first, then everything that leads to it.

Records, laws and whatever else exists go in; one file comes out that needs no network, no script and no other file.
A part that was not given is absent from the page.
"""

import importlib.metadata
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.pages.html import page
from isoflop.pages.plot import svg_text
from isoflop.recipe import write_text
from isoflop.scaling.published import LawsSource
from isoflop.scaling.report import tables
from isoflop.scaling.report.figures import figures_of
from isoflop.scaling.report.load_figures import load_figure, load_values
from isoflop.scaling.report.run_figures import training_figure, trunk_saving
from isoflop.scaling.report.study import Json, as_record, read_study
from isoflop.scaling.sweep.records import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN_VERSIONS = ("isoflop", "numpy", "scipy", "torch", "tokenizers")


def write_report(
    out_html: str | Path,
    *,
    records: Iterable[RunRecord | Json],
    laws: LawsSource | None = None,
    plan: Json | None = None,
    score: Json | None = None,
    corpus_manifest: Json | None = None,
    tokens_manifest: Json | None = None,
    ladder: Json | None = None,
    target_metrics: Sequence[Json] | None = None,
    commands: Sequence[str] = (),
    title: str = "Scaling study",
) -> Path:
    """Write the report and return its path.

    `plan` is `Plan.tree()`, `ladder` is `Ladder.summary()` (or an object that holds it as `summary`), `target_metrics`
    are the lines of the target's `metrics.jsonl`, `commands` what a reader types to get the same study.

    Raises:
        DataError: neither a finished run nor a law was given, or matplotlib is missing.
    """
    rows = list(map(as_record, records))
    study = read_study(rows, laws, plan, score)
    record = next((row for row in reversed(rows) if row.kind == "target"), None)
    about: Json = ladder or {}
    about = about.get("summary") or about
    warnings = [*(study.laws.warnings if study.laws else ()), *(about.get("warnings") or ())]
    saving = trunk_saving(study.cells)
    text = page(
        "scaling/report/study.html",
        title=title,
        study=study,
        target=tables.target_values(study),
        corpus=tables.corpus_values(corpus_manifest),
        tokens=tables.token_values(tokens_manifest),
        cells=tables.run_rows(study, study.cells),
        flops=saving.shared if saving else sum(study.flops(cell) for cell in study.cells),
        wall_s=tables.total_s(study.cells),
        at_target=tables.law_rows(study),
        disagreement=tables.disagreement(study),
        surfaces=tables.surface_rows(study),
        allocation=tables.allocation_rows(study),
        hyper=tables.hyper_rows(study),
        regrets=tables.regret_rows(study),
        plan=tables.plan_values(plan),
        run=tables.run_values(record.to_dict() if record else {}),
        load=load_values(target_metrics or [], record and record.expert_load),
        saving=trunk_saving([*study.cells, *study.diverged]),
        sharing=tables.regret_of_sharing(study),
        warnings=list(dict.fromkeys(map(str, warnings))),
        unused=tables.unused_budgets(study),
        diverged=tables.run_rows(study, study.diverged),
        conventions=tables.convention_rows(study),
        origin=tables.origin_values(rows),
        versions=_versions(),
        score={"predicted_at": None, "measured_at": None, "ratio": None, "ratio_exact": None}
        | dict(score or (record and record.score) or {}),
        ladder={"workers": about.get("workers"), "wall_hours": about.get("wall_hours")},
        commands=commands,
        pictures=_pictures(figures_of(study, target_metrics)),
    )
    write_text(out_html, text)
    return Path(out_html)


def write_run_report(
    out_html: str | Path,
    *,
    run: Json,
    metrics: Sequence[Json],
    title: str,
    curve: Json | None = None,
    forecasts: Sequence[Json] = (),
) -> dict[str, "Figure"]:
    """One page about one run, from its sizes and result (`run`) and its metrics; returns the figures that it shows.

    `curve` and `forecasts` are those of `training_figure`.

    Raises:
        DataError: matplotlib is missing.
    """
    drawn = {"training": training_figure(metrics, curve=curve, forecasts=forecasts), "load": load_figure(metrics)}
    figures = {name: figure for name, figure in drawn.items() if figure is not None}
    text = page(
        "scaling/report/run.html",
        title=title,
        run=tables.run_values(run),
        load=load_values(metrics, run.get("expert_load")),
        warnings=[line["warning"] for line in forecasts if "warning" in line],
        pictures=_pictures(figures),
    )
    write_text(out_html, text)
    return figures


def _pictures(figures: "Mapping[str, Figure]") -> dict[str, str]:
    return {name: svg_text(figure, f"figure-{name}", _LABELS[name]) for name, figure in figures.items()}


_LABELS = {
    "isoflop": "Validation loss against model scale, one curve per compute budget",
    "compute": "Loss against compute with the laws, the prediction and the measured value",
    "allocation": "Optimal model scale and tokens against compute",
    "residuals": "Predicted over measured loss of every run",
    "hyper": "Loss over learning rate and batch size",
    "trunks": "Shared trunks and cooldown branches",
    "training": "Training loss, validation and learning rate of a run",
    "load": "Load of the experts of every layer over training",
}


def _versions() -> list[tuple[str, str]]:
    """Versions of what computed the numbers, read from package metadata so that torch is not imported for its name."""
    found = [("Python", platform.python_version())]
    for name in _SHOWN_VERSIONS:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
