"""The page of the demo: what each stage changed, on the same held-out prompts, conversations and pairs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isoflop.pages.html import Markup, decimal, duration, facts, join, page, percent, section, table, tag, tiles
from isoflop.recipe import write_text

NAMES = {"base": "base model", "sft1": "SFT, stage 1", "sft2": "SFT, stage 2", "dpo": "DPO"}
FIGURES = {
    "assistant_loss": "loss on answers (nats a token)",
    "stop_share": "answers that stop",
    "repetition_ratio": "answers that loop",
    "pair_accuracy": "pairs ranked right",
}
SHOWN = 8


def write_demo_page(out: Path, recipe: Any, score: Mapping[str, Any], detail: Mapping[str, Any]) -> Path:
    """Write `out`/report.html and return it."""
    sections = [
        ("result", "Result", section("result", "What each stage changed", _tiles(score, detail), _table(score))),
        ("changes", "Changes", section("changes", "Changes with their intervals", _changes(detail))),
        ("answers", "Answers", section("answers", "The same prompts after each stage", _answers(detail))),
        ("settings", "Settings", section("settings", "Settings and time", _settings(recipe, detail))),
    ]
    lead = (
        f"A model of {detail['n_parameters']:,} parameters, trained here from nothing: base, SFT in two stages, DPO. "
        "Intervals are 95%."
    )
    write_text(out / "report.html", page("From a base model to an assistant", tag("p", lead), sections, "isoflop"))
    return out / "report.html"


def _tiles(score: Mapping[str, Any], detail: Mapping[str, Any]) -> Markup:
    base, second, dpo = score["base"], score["sft2"], score["dpo"]
    return tiles(
        [
            (
                "answers that stop",
                percent(second["stop_share"]["value"], 1),
                f"base: {base['stop_share']['value']:.1%}, {second['stop_share']['n']:,} prompts",
            ),
            (
                "loss on answers",
                decimal(second["assistant_loss"]["value"], 3),
                f"base: {base['assistant_loss']['value']:.3f}",
            ),
            (
                "pairs won by DPO",
                percent(dpo["pair_accuracy"]["value"], 1),
                f"{detail['n_pairs']:,} held-out pairs; longer wins: {detail['longer_wins']:.1%}",
            ),
        ]
    )


def _table(score: Mapping[str, Any]) -> Markup:
    rows = [[NAMES[stage], *(_figure(name, values[name]) for name in FIGURES)] for stage, values in score.items()]
    note = (
        "Pairs: the share in which the preferred answer has the higher log-probability; for DPO, the share in which it "
        "gained more than the other one, which is what DPO trains."
    )
    return join(table(["stage", *FIGURES.values()], rows), tag("p", note))


def _changes(detail: Mapping[str, Any]) -> Markup:
    rows = []
    for change, figures in detail["changes"].items():
        before, _, after = change.partition(" to ")
        rows.append([f"{NAMES[before]} to {NAMES[after]}", *(_figure(n, f, signed=True) for n, f in figures.items())])
    names = [FIGURES[name] for name in next(iter(detail["changes"].values()))]
    right = [[NAMES[stage], _figure("right", figure)] for stage, figure in detail["right_results"].items()]
    sums = table(["stage", "sums with the right result"], right) if right else ""
    return join(table(["from, to", *names], rows), sums)


def _answers(detail: Mapping[str, Any]) -> Markup:
    rows = []
    for items in list(zip(*(detail["answers"][stage] for stage in NAMES)))[:SHOWN]:
        asked = "\n".join(content for _, content in items[0]["prompt"])
        rows.append([asked, items[0]["expected"], *(_said(item) for item in items)])
    return table(["asked", "in the data", *NAMES.values()], rows, text_columns=tuple(range(2 + len(NAMES))))


def _said(item: Mapping[str, Any]) -> str:
    text = item["answer"] if len(item["answer"]) <= 160 else f"{item['answer'][:160]} ..."
    return text if item["stopped"] else f"{text} [did not stop]"


def _settings(recipe: Any, detail: Mapping[str, Any]) -> Markup:
    times = [(f"time, {stage}", duration(seconds)) for stage, seconds in detail["seconds"].items()]
    return facts(
        [
            ("data", detail["data"] or "made from this Python environment"),
            ("seed", detail["seed"]),
            ("training pairs", detail["n_train_pairs"]),
            ("base tokens", recipe.base.n_tokens),
            ("rate of SFT", recipe.sft.learning_rate),
            ("rate of DPO", recipe.dpo_train.learning_rate),
            *times,
            ("time, all", duration(sum(detail["seconds"].values()))),
        ]
    )


def _figure(name: str, figure: Mapping[str, Any], *, signed: bool = False) -> str:
    value, low, high = (figure[key] for key in ("value", "low", "high"))
    sign = "+" if signed else ""
    if name == "assistant_loss":
        return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"
    return f"{100 * value:{sign}.1f}% ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"
