"""Second half of the report: the plan, the run it predicted, savings, failures, conventions, how to run it again.

Each function takes what is known and returns HTML, or an empty string where nothing is known.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from isoflop.pages.html import (
    Markup,
    Pictures,
    bullets,
    decimal,
    duration,
    facts,
    fingerprint,
    join,
    listed,
    markup,
    percent,
    picture,
    scientific,
    section,
    sentence,
    shape,
    short,
    table,
    tag,
)
from isoflop.pages.plot import number
from isoflop.scaling.report.run_figures import sharing_regret, trunk_saving
from isoflop.scaling.report.study import Study
from isoflop.scaling.sweep.family import family_text


def plan(chosen: Mapping[str, Any] | None) -> Markup:
    """The run that was decided, and what else would have been as good."""
    if not chosen:
        return Markup("")
    model = chosen.get("model") or {}
    memory = chosen.get("memory") or {}
    total = number(memory.get("total_bytes"))
    prediction = chosen.get("prediction") or {}
    known = [
        ("shape", shape(model) if model else None),
        ("heads", model.get("n_heads")),
        ("feed-forward width", model.get("d_ff")),
        ("family", chosen.get("family")),
        ("experts", _experts(model)),
        ("expected compute multiplier over dense", _leverage(chosen, "expected")),
        ("measured compute multiplier over dense", _leverage(chosen, "measured")),
        ("context", model.get("seq_len")),
        ("parameters", _params(chosen)),
        ("tokens", short(chosen.get("n_tokens")) if number(chosen.get("n_tokens")) else None),
        ("epochs", _epochs(chosen)),
        ("batch (tokens)", chosen.get("batch_tokens")),
        ("steps", chosen.get("steps")),
        (
            "peak learning rate",
            decimal(chosen.get("learning_rate"), 3) if number(chosen.get("learning_rate")) else None,
        ),
        ("schedule", ((chosen.get("recipe") or {}).get("train") or {}).get("schedule")),
        (
            "compute",
            Markup(f"{scientific(chosen['total_flops'])} FLOPs") if number(chosen.get("total_flops")) else None,
        ),
        ("memory per device", f"{total / 2**30:.2f} GiB" if total else None),
        ("expected time", duration(3600 * chosen["hours"]) if number(chosen.get("hours")) else None),
        ("device-hours", decimal(chosen["gpu_hours"], 3) if number(chosen.get("gpu_hours")) else None),
        ("cost", decimal(chosen["cost"], 3) if number(chosen.get("cost")) else None),
        ("predicted at", prediction.get("predicted_at")),
    ]
    near = [row for row in chosen.get("near_optimal") or [] if isinstance(row, Mapping)]
    rows = [
        (
            Markup(f"{shape(row)}{' (chosen)' if row.get('chosen') else ''}"),
            short(row.get("n_params_total")),
            short(row.get("n_tokens")),
            decimal(row.get("loss")),
            percent(row.get("relative_loss"), 3, signed=True),
        )
        for row in near
    ]
    flat = ""
    if rows:
        text = f"The optimum is flat: {len(rows)} shapes lie within 0.1% of the best predicted loss. Smaller ones are "
        text += "cheaper to serve, larger ones need fewer tokens."
        flat = join(
            sentence(text), table(["shape (layers x width)", "parameters", "tokens", "predicted", "above best"], rows)
        )
    return section("plan", "The plan", facts(known), flat, _warning_list(chosen.get("warnings")))


def target(
    study: Study, record: Mapping[str, Any] | None, score: Mapping[str, Any] | None, pictures: Pictures
) -> Markup:
    """The run that was predicted, as it went."""
    run = record or {}
    known_score = []
    for key, label in (
        ("ratio", "compute over the largest sweep run, M D"),
        ("ratio_exact", "the same with the output head"),
    ):
        value = number((score or {}).get(key))
        known_score.append((label, None if value is None else Markup(f"&times;{value:.4g}")))
    caption = (
        "Training loss per step (light) and smoothed; validation in bits per byte; the bar at the end is the stated "
    )
    caption += "prediction with its interval."
    return section(
        "target",
        "The target run",
        facts(_run_facts(run) + known_score),
        picture(pictures, "training", caption),
        _domains(run),
    )


def single_run(run: Mapping[str, Any], pictures: Pictures) -> Markup:
    """A run by itself: `run` holds its sizes and its result."""
    known = [
        ("family", family_text(run["config"]) if run.get("config") else None),
        ("validation", Markup(f"{decimal(run['bits_per_byte'])} bits per byte") if run.get("bits_per_byte") else None),
        ("status", run.get("status")),
        ("commit", run.get("commit")),
    ]
    caption = "Training loss per step (light) and smoothed; validation in bits per byte."
    return section(
        "training", "The run", facts(_run_facts(run) + known), picture(pictures, "training", caption), _domains(run)
    )


def _run_facts(run: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [
        ("run", run.get("run_id")),
        ("shape", shape(run) if run.get("n_layers") else None),
        ("tokens", short(run["n_tokens"]) if number(run.get("n_tokens")) else None),
        ("time", duration(run["wall_s"]) if number(run.get("wall_s")) else None),
        ("speed", Markup(f"{short(run['tokens_per_s'])} tokens/s") if number(run.get("tokens_per_s")) else None),
        ("device", _device(run)),
    ]


def _domains(run: Mapping[str, Any]) -> Markup:
    by_domain = run.get("bits_per_byte_by_domain") or {}
    rows = [(name, decimal(value)) for name, value in by_domain.items()]
    return table(["domain", "validation bits per byte"], rows)


def savings(study: Study, pictures: Pictures) -> Markup:
    """What shared trunks saved, and what they cost where controls measured it."""
    saving = trunk_saving([*study.cells, *study.diverged])
    if saving is None:
        return Markup("")
    text = Markup(
        "Runs of one size share their constant-rate trunk; only the cooldowns are separate. "
        f"{scientific(saving['shared'])} FLOPs were run; the same runs one by one would have cost "
        f"{scientific(saving['separate'])}, {saving['factor']:.2f} times as much."
    )
    regrets = sharing_regret(study)
    parts: list[Any] = [sentence(text), picture(pictures, "trunks", "")]
    if regrets:
        noise = number((study.laws.get("noise") or {}).get("relative_sd"))
        mean = sum(row["regret"] for row in regrets) / len(regrets)
        beside = f"; one run's noise around the laws is {percent(noise, 1)}" if noise else ""
        parts.append(
            sentence(
                f"The price: shared cells take rate and batch from their size instead of their budget. "
                f"{len(regrets)} of them, run once more alone with their own budget's, put the regret of sharing at "
                f"{percent(mean, 2, signed=True)} of the loss{beside}."
            )
        )
        rows = [
            (
                scientific(row["budget_flops"]),
                short(row["scale"]),
                " / ".join(f"{rate:.3g}" for rate in row["learning_rates"]),
                " / ".join(f"{batch:,}" for batch in row["batch_tokens"]),
                " / ".join(decimal(loss) for loss in row["losses"]),
                percent(row["regret"], 2, signed=True),
            )
            for row in regrets
        ]
        headers = ["budget", study.scale_label, "rate, shared / alone", "batch, shared / alone"]
        parts.append(table([*headers, f"{study.loss_label}, shared / alone", "regret"], rows))
    return section("savings", "What shared trunks saved, and cost", *parts)


def caveats(study: Study, ladder: Mapping[str, Any] | None) -> Markup:
    """Warnings and negative facts: nothing that failed is left out."""
    said = [*(study.laws.get("warnings") or []), *((ladder or {}).get("warnings") or [])]
    unused = [
        f"budget {vertex.get('budget_flops'):.3g}: its vertex was not used, it lies outside the tested sizes"
        for vertex in (study.laws.get("parabola") or {}).get("vertices") or []
        if not vertex.get("used", vertex.get("inside", True)) and number(vertex.get("budget_flops"))
    ]
    rows = [
        (
            run.get("run_id"),
            shape(run),
            short(run.get("n_tokens")),
            short(run.get("batch_tokens")),
            decimal(run.get("learning_rate"), 3),
        )
        for run in study.diverged
    ]
    diverged = join(
        sentence(f"Diverged runs: {len(rows)}. They are recorded and were not fitted."),
        table(["run", "shape", "tokens", "batch", "rate"], rows),
    )
    return section(
        "caveats",
        "Warnings and what failed",
        bullets(dict.fromkeys(map(str, [*said, *unused]))),
        diverged if rows else "",
    )


def conventions(study: Study) -> Markup:
    """What was counted how: part of every law."""
    stated: dict[str, Any] = {}
    for cell in study.cells[:1]:
        stated |= cell.get("conventions") or {}
    stated |= dict(study.laws.get("conventions") or {})
    rows = [(str(name).replace("_", " "), value) for name, value in stated.items() if value not in (None, "")]
    return section("conventions", "Conventions", table(["what", "convention"], rows, text_columns=(0, 1)))


def reproduce(
    study: Study, commands: Sequence[str], versions: Iterable[tuple[str, str]], runs: Sequence[Mapping[str, Any]]
) -> Markup:
    """Commands, seeds, commit, hardware and versions."""

    def distinct(key: str) -> list[str]:
        return sorted({str(run[key]) for run in runs if run.get(key) not in (None, "")})

    known = [
        ("commit", listed(distinct("commit"))),
        ("seeds", listed(distinct("seed"))),
        ("device", listed(sorted({text for run in runs if (text := _device(run))}))),
        ("tokenizer hash", listed([fingerprint(value) for value in distinct("tokenizer_sha256")])),
        ("data hash", listed([fingerprint(value) for value in distinct("data_sha256")])),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions)),
    ]
    code = tag("pre", tag("code", "\n".join(commands))) if commands else ""
    return section("reproduce", "How to run it again", code, facts(known))


def _params(chosen: Mapping[str, Any]) -> Markup | None:
    total = number(chosen.get("n_params_total"))
    if total is None:
        return None
    inner = number(chosen.get("n_params_non_embedding"))
    active = number(chosen.get("n_params_active"))
    used = f", {short(active)} used by one token" if active and active < total else ""
    return Markup(f"{short(total)}" + (f", {short(inner)} without embeddings" if inner else "") + used)


def _experts(model: Mapping[str, Any]) -> str | None:
    found = model.get("experts") or {}
    if not found:
        return None
    return f"{found.get('n_experts')} of width {found.get('d_expert')}, {found.get('n_active')} active, " + (
        f"{found.get('n_shared')} shared"
    )


def _leverage(chosen: Mapping[str, Any], kind: str) -> Markup | None:
    """Centre and range, with where they come from."""
    found = (chosen.get("leverage") or {}).get(kind) or {}
    if number(found.get("center")) is None:
        return None
    low, high = decimal(found.get("low"), 3), decimal(found.get("high"), 3)
    origin = found.get("source") or f"this study over {found.get('over')}"
    return Markup(f"{decimal(found['center'], 3)} ({low} to {high}; {markup(origin)})")


def _epochs(chosen: Mapping[str, Any]) -> Markup | None:
    unique, tokens = number(chosen.get("unique_tokens")), number(chosen.get("n_tokens"))
    return decimal(tokens / unique, 3) if unique and tokens else None


def _device(run: Mapping[str, Any]) -> str | None:
    device, threads = run.get("device"), run.get("threads")
    return f"{device}, {threads} threads" if device and threads else str(device) if device else None


def _warning_list(warnings: Any) -> Markup:
    return bullets(warnings) if isinstance(warnings, (list, tuple)) else Markup("")
