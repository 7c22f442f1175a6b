"""First half of the report: the verdict, the data, the sweep and its laws.

Each function takes what is known and returns HTML, or an empty string where nothing is known.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from isoflop.pages.html import (
    Markup,
    Pictures,
    decimal,
    duration,
    facts,
    fingerprint,
    folded,
    join,
    listed,
    megabytes,
    percent,
    picture,
    scientific,
    section,
    sentence,
    shape,
    short,
    table,
    tag,
    tiles,
)
from isoflop.pages.plot import number
from isoflop.scaling.report.run_figures import trunk_saving
from isoflop.scaling.report.study import LAW_LABEL, Study, Target, band, resamples, target_laws


def verdict(study: Study, score: Mapping[str, Any] | None, pictures: Pictures) -> Markup:
    """The answer first: was the prediction right? With the one figure that shows it."""
    target = study.target
    if target is None or target.predicted is None:
        state = "fitted, no run predicted yet" if study.laws else "finished, no law fitted yet"
        shown = picture(pictures, "compute", "Runs and laws; lines are dashed where they extrapolate.")
        return tag("div", tag("h2", f"{len(study.cells)} runs {state}"), shown, css="verdict")
    unit, level = study.loss_label, f"{100 * target.level:.0f}%"
    interval = Markup("no interval")
    if target.low is not None and target.high is not None:
        width = percent((target.high - target.low) / target.predicted, 1)
        interval = Markup(f"{level} interval {decimal(target.low)} to {decimal(target.high)}, {width} wide")
    numbers: list[tuple[str, Any, Any]] = [(f"predicted, {unit}", decimal(target.predicted), interval)]
    css, headline = "verdict", "Predicted, not yet measured"
    if target.measured is not None:
        error = target.predicted / target.measured - 1
        headline = f"The prediction was {percent(abs(error))} off"
        inside = _inside(target)
        if inside is not None:
            headline += f", {'inside' if inside else 'outside'} its {level} interval"
            css += " good" if inside else " bad"
        remark = "the run came out better than predicted" if error > 0 else "the run came out worse than predicted"
        numbers.append((f"measured, {unit}", decimal(target.measured), "validation, at the end of the run"))
        numbers.append(("predicted over measured", percent(error, signed=True), remark))
    largest = study.largest_flops
    if target.flops and largest:
        text = Markup(f"{scientific(target.flops)} FLOPs; largest budget of the sweep {scientific(largest)}")
        numbers.append(("extrapolated in compute", Markup(f"&times;{target.flops / largest:.3g}"), text))
    caption = (
        "Left: runs, laws and the target; lines are dashed where they extrapolate. Right: the laws at the target, each "
        "with the interval of its own resamples, then the stated prediction, which holds their disagreement, the noise "
        "of a single run and the miss of the rehearsal."
    )
    return tag(
        "div", tag("h2", headline), tiles(numbers), _times(score), picture(pictures, "compute", caption), css=css
    )


def data(corpus: Mapping[str, Any] | None, tokens: Mapping[str, Any] | None) -> Markup:
    """What the models read."""
    parts: list[Any] = []
    if corpus:
        duplicates = corpus.get("duplicates") or {}
        parts.append(
            facts(
                [
                    ("documents", corpus.get("n_documents")),
                    ("text", megabytes(corpus.get("n_bytes"))),
                    ("corpus hash", fingerprint(corpus.get("corpus_sha256"))),
                    ("removed as duplicates", _pairs(duplicates)),
                    ("unreadable records", corpus.get("n_bad_records")),
                    ("held out for validation", listed(corpus.get("held_out"))),
                ]
            )
        )
        files = [item for item in corpus.get("files") or [] if isinstance(item, Mapping)]
        rows = [
            (item.get("split"), item.get("domain"), item.get("n_documents"), megabytes(item.get("n_bytes")))
            for item in files
        ]
        parts.append(table(["split", "domain", "documents", "text"], rows, text_columns=(0, 1)))
        parts.append(folded("Dropped by quality rule", _drops(corpus.get("drops"))))
        parts.append(folded("Licences", _licences(corpus.get("licenses"))))
    if tokens:
        groups: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        for shard in tokens.get("shards") or []:
            total = groups[str(shard.get("split")), str(shard.get("domain"))]
            for index, key in enumerate(("n_tokens", "n_bytes", "n_documents")):
                total[index] += number(shard.get(key)) or 0.0
        rows = [
            (split, domain, short(n), megabytes(b), decimal(b / n, 3) if n else None, int(d))
            for (split, domain), (n, b, d) in sorted(groups.items())
        ]
        parts.append(
            facts(
                [
                    ("vocabulary", tokens.get("vocab_size")),
                    ("tokenizer hash", fingerprint(tokens.get("tokenizer_sha256"))),
                    ("data hash", fingerprint(tokens.get("data_sha256"))),
                ]
            )
        )
        headers = ["split", "domain", "tokens", "text", "bytes per token", "documents"]
        parts.append(table(headers, rows, text_columns=(0, 1)))
    return section("data", "Data", *parts)


def sweep(study: Study, pictures: Pictures, ladder: Mapping[str, Any] | None) -> Markup:
    """The small runs and their curves."""
    if not study.cells:
        return Markup("")
    scales = [cell[study.scale_key] for cell in study.cells]
    spent = trunk_saving(study.cells)
    flops = spent["shared"] if spent else sum(study.flops(cell) for cell in study.cells)
    spent_s = _total(study.cells, "wall_s")
    known = [
        ("finished runs", len(study.cells)),
        ("diverged runs", len(study.diverged)),
        ("budgets", Markup(", ".join(scientific(budget) for budget in study.budgets)) if study.budgets else None),
        (
            "sizes",
            Markup(f"{len(set(scales))}, from {short(min(scales))} to {short(max(scales))} ({study.scale_label})"),
        ),
        ("compute spent", Markup(f"{scientific(flops)} FLOPs")),
        ("time, summed over runs", None if spent_s is None else duration(spent_s)),
    ]
    if ladder:
        hours = number(ladder.get("wall_hours"))
        known.append(("time expected before it ran", None if hours is None else duration(3600 * hours)))
        known.append(("workers", ladder.get("workers")))
    headers = ["run", "budget", "shape", "scale", "tokens", "batch", "rate", study.loss_label]
    rows = [
        (
            cell.get("run_id"),
            scientific(cell.get("budget_flops")),
            shape(cell),
            short(cell[study.scale_key]),
            short(cell["n_tokens"]),
            short(cell.get("batch_tokens")),
            decimal(cell.get("learning_rate"), 3),
            decimal(cell[study.loss_key]),
        )
        for cell in sorted(study.cells, key=lambda row: (row.get("budget_flops") or 0, row[study.scale_key]))
    ]
    caption = (
        "One curve per budget; each dot is a finished run. Diamonds mark the best size of a budget, the grey band "
    )
    caption += "is where 90% of the resampled laws put it."
    return section(
        "sweep",
        "The sweep",
        facts(known),
        picture(pictures, "isoflop", caption),
        folded(f"All {len(rows)} runs", table(headers, rows)),
    )


def laws(study: Study, pictures: Pictures, plan: Mapping[str, Any] | None) -> Markup:
    """The fitted laws side by side at the target, their disagreement, and how well they fit."""
    if not study.laws:
        return Markup("")
    parts: list[Any] = [_laws_at_target(study, plan)]
    fits = [(name, fit) for name, fit in (study.laws.get("surface") or {}).items() if isinstance(fit, Mapping)]
    if fits:
        names = ("E", "A", "B", "alpha", "beta", "a")
        size = "M" if study.per_token == 1 else "N"
        formula = f"L({size}, D) = E + A {size}<sup>-alpha</sup> + B D<sup>-beta</sup>; "
        formula += f"at the optimum {size} grows as C<sup>a</sup>."
        rows = [
            (LAW_LABEL.get(f"surface_{name}", name), *[decimal(fit.get(key)) for key in names]) for name, fit in fits
        ]
        parts += [sentence(Markup(formula)), table(["surface", *names], rows)]
    lstar = study.laws.get("lstar") or {}
    if number(lstar.get("E")) is not None:
        reference = number(lstar.get("reference_flops"))
        base = Markup("C" if reference in (None, 1.0) else f"(C / {scientific(reference)})")
        exponent = Markup(f"<sup>-{decimal(lstar.get('g'))}</sup>")
        text = Markup(
            f"L*(C) = {decimal(lstar['E'])} + {decimal(lstar.get('k'))} {base}{exponent}, loss at the optimum."
        )
        parts.append(sentence(text))
    parts.append(
        picture(pictures, "residuals", "Every run against the surface that was fitted to it, then the target.")
    )
    rehearsal = study.laws.get("leave_out") or {}
    if number(rehearsal.get("relative_error")) is not None:
        factor = number(rehearsal.get("extrapolation_factor"))
        parts.append(
            sentence(
                "Rehearsal: fitted without the largest budget, the laws predicted its runs near the optimum as ",
                decimal(rehearsal.get("predicted")),
                ", measured ",
                decimal(rehearsal.get("measured")),
                Markup(f" ({percent(rehearsal['relative_error'], signed=True)}"),
                Markup(f", at {factor:.3g} times the compute)." if factor else ")."),
            )
        )
    return section("laws", "The laws, and where they disagree", *parts)


def allocation(study: Study, pictures: Pictures) -> Markup:
    """How the optimum splits compute between size and tokens."""
    parabola = study.laws.get("parabola") or {}
    rows = []
    for letter, what in (("n", study.scale_label), ("d", "tokens D")):
        exponent = number(parabola.get(f"{letter}_exponent"))
        if exponent is None:
            continue
        drawn = resamples(study.laws, f"{letter}_allocation", 2)
        interval = band(drawn[:, 1]) if len(drawn) else None
        text = Markup(f"{decimal(interval[0], 3)} to {decimal(interval[1], 3)}") if interval else None
        rows.append((f"optimal {what}", decimal(parabola.get(f"{letter}_coefficient")), decimal(exponent), text))
    caption = "Points: vertices of the budgets. Solid: fitted, dashed: extrapolated."
    if study.scale_key == "flops_per_token":
        caption += (
            " The dotted line is the published law of DeepSeek LLM (2401.02954), fitted to other data and larger "
        )
        caption += "models: a reference, not a target."
    return section(
        "allocation",
        "How to split compute",
        picture(pictures, "allocation", caption),
        table([Markup("coefficient &times; C<sup>exponent</sup>"), "coefficient", "exponent", "90% interval"], rows),
    )


def hyper(study: Study, pictures: Pictures) -> Markup:
    """Learning rate and batch."""
    found = study.laws.get("hyper") or {}
    rows = []
    for quantity, label in (("learning_rate", "learning rate"), ("batch", "batch (tokens)")):
        for method, law in (found.get(quantity) or {}).items():
            if isinstance(law, Mapping) and number(law.get("coefficient")) is not None:
                exponents = [
                    f"{key[0].upper()}^{value:.3g}"
                    for key in law
                    if key.endswith("_exponent") and (value := number(law[key])) is not None
                ]
                rows.append(
                    (
                        label,
                        str(method).replace("_", " "),
                        decimal(law["coefficient"]),
                        " ".join(exponents) or "constant",
                    )
                )
    costs = [
        (str(name).replace("_", " "), percent(cost.get("mean")), percent(cost.get("max")))
        for name, cost in (found.get("regret") or {}).items()
        if isinstance(cost, Mapping)
    ]
    caption = "Loss above the best run of the same size and tokens, in percent."
    return section(
        "hyper",
        "Learning rate and batch",
        picture(pictures, "hyper", caption),
        table(["quantity", "method", "coefficient", "times"], rows, text_columns=(0, 1, 3)),
        table(["law", "mean regret", "worst regret"], costs),
    )


def _laws_at_target(study: Study, plan: Mapping[str, Any] | None) -> Markup:
    target = study.target
    found = target_laws(study)
    if target is None or not found:
        return Markup("")
    rows = [(row["label"], decimal(row["centre"]), _range(row["low"], row["high"]), row["centre"]) for row in found]
    if target.predicted is not None:
        rows.append(("stated prediction", decimal(target.predicted), _range(target.low, target.high), target.predicted))
    centres = [row["centre"] for row in found]
    apart = (max(centres) - min(centres)) / (sum(centres) / len(centres))
    parts: list[Any] = []
    if len(found) > 1:
        parts.append(
            sentence(
                "At the target the laws lie ", percent(apart), " apart; the stated interval holds this disagreement."
            )
        )
    measured = target.measured
    headers = ["at the target", study.loss_label, f"{100 * target.level:.0f}% interval"]
    if measured is None:
        parts.append(table(headers, [row[:3] for row in rows]))
    else:
        lines = [(*row[:3], percent(row[3] / measured - 1, signed=True)) for row in rows]
        parts.append(table([*headers, "error"], lines))
    causes = ((plan or {}).get("prediction") or {}).get("components") or {}
    names = {
        "fit_half_width": "uncertain constants and disagreeing laws, half the width",
        "run_noise_sd": "noise of a single run, one standard deviation",
        "rehearsal_miss_scaled": "miss of the rehearsal, scaled to this extrapolation, one standard deviation",
    }
    lines = [(label, percent(causes[key])) for key, label in names.items() if number(causes.get(key)) is not None]
    parts.append(table(["what the interval is made of", "share of the loss"], lines))
    return join(*parts)


def _range(low: Any, high: Any) -> Markup | None:
    return (
        Markup(f"{decimal(low)} to {decimal(high)}") if number(low) is not None and number(high) is not None else None
    )


def _inside(target: Target) -> bool | None:
    if target.measured is None or target.low is None or target.high is None:
        return None
    return target.low <= target.measured <= target.high


def _times(score: Mapping[str, Any] | None) -> Markup:
    made, seen = (score or {}).get("predicted_at"), (score or {}).get("measured_at")
    if not made:
        return Markup("")
    return sentence(f"The prediction was written at {made}" + (f" and the result measured at {seen}." if seen else "."))


def _pairs(values: Any) -> str | None:
    if not isinstance(values, Mapping) or not values:
        return None
    return ", ".join(
        f"{str(name).replace('_', ' ')} {value:,}" for name, value in values.items() if number(value) is not None
    )


def _drops(drops: Any) -> Markup:
    """{domain: {rule: count}} or {rule: count}; other forms are not shown."""
    rows: list[tuple[Any, ...]] = []
    for name, value in drops.items() if isinstance(drops, Mapping) else []:
        if isinstance(value, Mapping):
            rows += [(name, rule, amount) for rule, amount in value.items()]
        else:
            rows.append(("all", name, value))
    return table(["domain", "rule", "documents"], rows, text_columns=(0, 1))


def _licences(licences: Any) -> Markup:
    if not isinstance(licences, Mapping):
        return Markup("")
    return table(["licence", "amount"], list(licences.items()), text_columns=(0,))


def _total(runs: Iterable[Mapping[str, Any]], key: str) -> float | None:
    values = [value for run in runs if (value := number(run.get(key))) is not None]
    return sum(values) if values else None
