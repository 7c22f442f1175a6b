"""One self-contained HTML page about a study: the verdict first, then everything that leads to it.

Records, laws and whatever else exists go in; one file comes out that needs no network, no script and no other file.
A part that was not given is absent from the page.
"""

import html
import importlib.metadata
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.pages.html import Markup, page
from isoflop.pages.plot import svg_text
from isoflop.recipe import write_text
from isoflop.scaling.report import run_sections, study_sections
from isoflop.scaling.report.figures import figures_of
from isoflop.scaling.report.load_figures import load_figure, load_section
from isoflop.scaling.report.run_figures import training_figure
from isoflop.scaling.report.study import plain_row, read_study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN_VERSIONS = ("isoflop", "numpy", "scipy", "torch", "tokenizers")


def write_report(
    out_html: str | Path,
    *,
    records: Iterable[Any],
    laws: Mapping[str, Any] | None = None,
    plan: Mapping[str, Any] | None = None,
    score: Mapping[str, Any] | None = None,
    corpus_manifest: Mapping[str, Any] | None = None,
    tokens_manifest: Mapping[str, Any] | None = None,
    ladder: Mapping[str, Any] | None = None,
    target_metrics: Sequence[Mapping[str, Any]] | None = None,
    commands: Sequence[str] = (),
    title: str = "Scaling study",
) -> Path:
    """Write the report and return its path.

    `plan` is `Plan.tree()`, `ladder` is `Ladder.summary()` (or an object that holds it as `summary`), `target_metrics`
    are the lines of the target's `metrics.jsonl`, `commands` what a reader types to get the same study.

    Raises:
        DataError: neither a finished run nor a law was given, or matplotlib is missing.
    """
    rows = [plain_row(record) for record in records]
    study = read_study(rows, laws, plan, score)
    record = next((row for row in reversed(rows) if row.get("kind") == "target"), None)
    score = score or (record or {}).get("score")
    ladder = (ladder or {}).get("summary") or ladder
    pictures = {
        name: svg_text(figure, f"figure-{name}", html.escape(_LABELS[name], quote=True))
        for name, figure in figures_of(study, target_metrics).items()
    }
    parts = [
        ("data", "Data", study_sections.data(corpus_manifest, tokens_manifest)),
        ("sweep", "Sweep", study_sections.sweep(study, pictures, ladder)),
        ("laws", "Laws", study_sections.laws(study, pictures, plan)),
        ("allocation", "Allocation", study_sections.allocation(study, pictures)),
        ("hyper", "Learning rate", study_sections.hyper(study, pictures)),
        ("plan", "Plan", run_sections.plan(plan)),
        ("target", "Target run", run_sections.target(study, record, score, pictures)),
        ("load", "Expert load", load_section(target_metrics, record, pictures)),
        ("savings", "Savings", run_sections.savings(study, pictures)),
        ("caveats", "Warnings", run_sections.caveats(study, ladder)),
        ("conventions", "Conventions", run_sections.conventions(study)),
        ("reproduce", "Reproduce", run_sections.reproduce(study, commands, _versions(), rows)),
    ]
    lead = study_sections.verdict(study, score, pictures)
    footer = Markup("Written by isoflop from records and laws; every number on this page is in those files.")
    write_text(out_html, page(title, lead, parts, footer))
    return Path(out_html)


def write_run_report(
    out_html: str | Path,
    *,
    run: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    title: str,
) -> dict[str, "Figure"]:
    """One page about one run, from its sizes and result (`run`) and its metrics; returns the figures that it shows.

    Raises:
        DataError: matplotlib is missing.
    """
    drawn = {"training": training_figure(metrics), "load": load_figure(metrics)}
    figures = {name: figure for name, figure in drawn.items() if figure is not None}
    pictures = {
        name: svg_text(figure, f"figure-{name}", html.escape(_LABELS[name], quote=True))
        for name, figure in figures.items()
    }
    parts = [
        ("training", "Run", run_sections.single_run(run, pictures)),
        ("load", "Expert load", load_section(metrics, run, pictures)),
    ]
    footer = Markup("Written by isoflop from the metrics and the result of the run.")
    write_text(out_html, page(title, Markup(""), parts, footer))
    return figures


_LABELS = {
    "isoflop": "Validation loss against model scale, one curve per compute budget",
    "compute": "Loss against compute with the laws, the prediction and the measured value",
    "allocation": "Optimal model scale and tokens against compute",
    "residuals": "Predicted over measured loss of every run",
    "hyper": "Loss over learning rate and batch size",
    "trunks": "Shared trunks and cooldown branches",
    "training": "Training loss, validation and learning rate of the target run",
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
