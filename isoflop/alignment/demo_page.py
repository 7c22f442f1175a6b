"""The page of the demo: what each stage changed, on the same held-out prompts, conversations and pairs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isoflop.alignment.page import answer_text
from isoflop.pages.html import page
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
    changed = next(iter(detail["changes"].values()))
    text = page(
        "alignment/demo_page.html",
        pictures={},
        title="From a base model to an assistant",
        detail=detail,
        tiles=_tiles(score, detail),
        columns=[(title, name, "auto") for name, title in FIGURES.items()],
        stages=[{"stage": NAMES[stage]} | {n: _figure(n, f) for n, f in item.items()} for stage, item in score.items()],
        change_columns=[(FIGURES[name], name, "auto") for name in changed],
        changes=[
            {"stage": " to ".join(NAMES[stage] for stage in change.split(" to "))}
            | {name: _figure(name, figure, signed=True) for name, figure in figures.items()}
            for change, figures in detail["changes"].items()
        ],
        right=[{"stage": NAMES[s], "right": _figure("right", figure)} for s, figure in detail["right_results"].items()],
        answer_columns=[(title, stage) for stage, title in NAMES.items()],
        answers=_answers(detail),
        settings=_settings(recipe, detail),
    )
    write_text(out / "report.html", text)
    return out / "report.html"


def _tiles(score: Mapping[str, Any], detail: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    base, second, dpo = score["base"], score["sft2"], score["dpo"]
    stops, loss = (lambda item, key=key: item[key]["value"] for key in ("stop_share", "assistant_loss"))
    return [
        (
            "answers that stop",
            f"{stops(second):.1%}",
            f"base: {stops(base):.1%}, {second['stop_share']['n']:,} prompts",
        ),
        ("loss on answers", f"{loss(second):.3f}", f"base: {loss(base):.3f}"),
        (
            "pairs won by DPO",
            f"{dpo['pair_accuracy']['value']:.1%}",
            f"{detail['n_pairs']:,} held-out pairs; longer wins: {detail['longer_wins']:.1%}",
        ),
    ]


def _answers(detail: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {"asked": "\n".join(content for _, content in items[0]["prompt"]), "expected": items[0]["expected"]}
        | {stage: answer_text(item, 160) for stage, item in zip(NAMES, items)}
        for items in list(zip(*(detail["answers"][stage] for stage in NAMES)))[:SHOWN]
    ]


def _settings(recipe: Any, detail: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    times = [(f"time, {stage}", seconds, "duration") for stage, seconds in detail["seconds"].items()]
    return [
        ("data", detail["data"] or "made from this Python environment"),
        ("seed", detail["seed"]),
        ("training pairs", detail["n_train_pairs"]),
        *_read_rows(detail),
        ("base tokens", recipe.base.n_tokens),
        ("rate of SFT", recipe.sft.learning_rate),
        ("rate of DPO", recipe.dpo_train.learning_rate),
        *times,
        ("time, all", sum(detail["seconds"].values()), "duration"),
    ]


def _read_rows(detail: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """What was read of a data folder."""
    read = detail.get("conversations")
    if read is None:
        return []
    bad = ", ".join(f"{n:,} {reason}" for reason, n in read["quarantined"].items())
    return [
        ("conversations read", read["n_read"]),
        ("short enough", read["n_short"]),
        ("trained on, held out", f"{read['n_train']:,}, {read['n_valid']:,}"),
        ("records set aside", bad or "none"),
    ]


def _figure(name: str, figure: Mapping[str, Any], *, signed: bool = False) -> str:
    value, low, high = (figure[key] for key in ("value", "low", "high"))
    sign = "+" if signed else ""
    if name == "assistant_loss":
        return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"
    return f"{100 * value:{sign}.1f}% ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"
