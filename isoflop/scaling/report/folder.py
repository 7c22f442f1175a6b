"""A study on disk: what each stage left in one folder, read back for the report.

STUDY/corpus/, tokens/, sweep/    what the stages of the same name wrote
      sweep/records.jsonl         cells, and the target once it is scored; or records.jsonl beside them
      laws.json, plan.toml        what isoflop fit and isoflop plan wrote, with plan.json: all about the plan
      target/                     the run that was planned, with its score.json; or score.json beside it
      report.html, figures/       what is made here
      ladder.json, commands.json  more for the page, from isoflop demo

These are the places that the commands write to by default, with runs/ as the study and `--out runs/target` for the run.

The folder of a single run (metrics.jsonl, result.json, recipe.toml) gives a page of its own.
"""

import tomllib
from pathlib import Path

from isoflop.errors import DataError
from isoflop.model.config import ModelConfig
from isoflop.pages.plot import save
from isoflop.recipe import Tree, from_tree, read_json
from isoflop.scaling.report.figures import draw_figures
from isoflop.scaling.report.page import write_report, write_run_report
from isoflop.scaling.sweep.records import read_json_lines, read_records, study_records

FORMATS = (".svg", ".png")


def report_study(study: Path, out: Path, *, figures: Path | None = None, title: str = "") -> Tree:
    """Write the page (and, if asked for, every figure as SVG and PNG) from what `study` holds.

    Raises:
        DataError: no records there, or a damaged file.
    """
    records_path = study_records(study)
    if records_path is None:
        if (study / "metrics.jsonl").is_file():
            return _report_run(study, out, figures=figures, title=title)
        raise DataError(
            f"{study} has no records.jsonl; run isoflop sweep first, or give the folder of a study or a run"
        )
    records = read_records(records_path)
    laws, plan = _json(study / "laws.json"), _json(study / "plan.json") or _planned(study / "plan.toml")
    score = _json(study / "score.json") or _json(study / "target/score.json")
    metrics = _lines(study / "target/metrics.jsonl")
    write_report(
        out,
        records=records,
        laws=laws,
        plan=plan,
        score=score,
        corpus_manifest=_json(study / "corpus/manifest.json"),
        tokens_manifest=_json(study / "tokens/manifest.json"),
        ladder=_json(study / "ladder.json"),
        target_metrics=metrics or None,
        commands=(_json(study / "commands.json") or {}).get("commands", ()),
        title=title or f"Scaling study: {study.resolve().name}",
    )
    drawn = {}
    if figures is not None:
        drawn = draw_figures(
            figures, records=records, laws=laws, plan=plan, score=score, target_metrics=metrics or None
        )
    return {"report": str(out), "figures": {name: [str(p) for p in paths] for name, paths in drawn.items()}}


def _planned(path: Path) -> Tree | None:
    """What the recipe of a planned run says about it, where the rest of the plan is not there."""
    if not path.is_file():
        return None
    recipe = _toml(path)
    train, prediction = recipe.get("train", {}), recipe.get("prediction", {})
    known = {key: train.get(key) for key in ("n_tokens", "batch_tokens", "learning_rate")}
    return {
        **known,
        "recipe": recipe,
        "model": recipe.get("model"),
        "prediction": prediction,
        "total_flops": prediction.get("target_flops"),
    }


def _report_run(run_dir: Path, out: Path, *, figures: Path | None, title: str) -> Tree:
    """The page of one run: what isoflop train left in its folder."""
    metrics, result = _lines(run_dir / "metrics.jsonl"), _json(run_dir / "result.json") or {}
    config, prediction = None, {}
    if (run_dir / "recipe.toml").is_file():
        tree = _toml(run_dir / "recipe.toml")
        if "model" not in tree:
            raise DataError(f"{run_dir} is no run of a language model; isoflop imaging report draws a study of imaging")
        config, prediction = from_tree(tree["model"], ModelConfig), tree.get("prediction") or {}
    sizes = {} if config is None else {"n_layers": config.n_layers, "d_model": config.d_model, "config": config}
    drawn = write_run_report(
        out,
        run={**sizes, **result},
        metrics=metrics,
        title=title or f"Run: {run_dir.resolve().name}",
        curve=prediction.get("curve"),
        forecasts=_lines(run_dir / "forecast.jsonl"),
    )
    saved = {} if figures is None else {n: [save(f, figures / f"{n}{e}") for e in FORMATS] for n, f in drawn.items()}
    return {"report": str(out), "figures": {name: [str(path) for path in paths] for name, paths in saved.items()}}


def _json(path: Path) -> Tree | None:
    return read_json(path, DataError, "make it again with the stage that wrote it") if path.is_file() else None


def _toml(path: Path) -> Tree:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no UTF-8, too
        raise DataError(f"{path} is not TOML ({error}); make it again with the stage that wrote it") from error


def _lines(path: Path) -> list[Tree]:
    return read_json_lines(path) if path.is_file() else []
