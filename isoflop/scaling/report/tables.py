"""What the tables and sentences of the report hold, as plain values: the words are in the templates beside this file.

A `Study` and what else is known go in; rows (dicts by column) come out, with None where something is not known.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from isoflop.pages.html import shape
from isoflop.pages.plot import number
from isoflop.scaling.report.run_figures import sharing_regret
from isoflop.scaling.report.study import LAW_LABEL, Study, band, resamples, target_laws
from isoflop.scaling.sweep.family import family_text

Tree = Mapping[str, Any]
Rows = list[dict[str, Any]]


def target_values(study: Study) -> dict[str, Any] | None:
    """The prediction and what came of it; None before a run is predicted."""
    target = study.target
    if target is None or target.predicted is None:
        return None
    low, high, measured, largest = target.low, target.high, target.measured, study.largest_flops
    width = inside = None
    if low is not None and high is not None:
        width = (high - low) / target.predicted
        inside = low <= measured <= high if measured is not None else None
    return {
        "predicted": target.predicted,
        "interval": (low, high),
        "level": target.level,
        "width": width,
        "measured": measured,
        "error": target.predicted / measured - 1 if measured is not None else None,
        "inside": inside,
        "flops": target.flops,
        "largest_flops": largest,
        "ratio": target.flops / largest if target.flops and largest else None,
    }


def corpus_values(corpus: Tree | None) -> dict[str, Any] | None:
    """Facts of the manifest of a corpus."""
    if not corpus:
        return None
    drops, licences = corpus.get("drops"), corpus.get("licenses")
    dropped: Rows = []
    for name, value in drops.items() if isinstance(drops, Mapping) else []:
        by_rule = value if isinstance(value, Mapping) else {name: value}
        domain = name if isinstance(value, Mapping) else "all"
        dropped += [{"domain": domain, "rule": rule, "documents": amount} for rule, amount in by_rule.items()]
    counts = corpus.get("duplicates") or {}
    keys = ("split", "domain", "n_documents", "n_bytes")
    return {
        **{key: corpus.get(key) for key in ("n_documents", "n_bytes", "corpus_sha256", "n_bad_records")},
        "duplicates": {
            str(name).replace("_", " "): value for name, value in counts.items() if number(value) is not None
        }
        if isinstance(counts, Mapping)
        else {},
        "held_out": corpus.get("held_out") or None,
        "files": [{key: item.get(key) for key in keys} for item in corpus.get("files") or []],
        "dropped": dropped,
        "licences": list(licences.items()) if isinstance(licences, Mapping) else [],
    }


def token_values(tokens: Tree | None) -> dict[str, Any] | None:
    """Facts of the manifest of tokens, its shards summed by split and domain."""
    if not tokens:
        return None
    groups: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for shard in tokens.get("shards") or []:
        total = groups[str(shard.get("split")), str(shard.get("domain"))]
        for index, key in enumerate(("n_tokens", "n_bytes", "n_documents")):
            total[index] += number(shard.get(key)) or 0.0
    return {
        **{key: tokens.get(key) for key in ("vocab_size", "tokenizer_sha256", "data_sha256")},
        "shards": [
            {
                "split": split,
                "domain": domain,
                "n_tokens": n,
                "n_bytes": n_bytes,
                "bytes_per_token": n_bytes / n if n else None,
                "n_documents": int(documents),
            }
            for (split, domain), (n, n_bytes, documents) in sorted(groups.items())
        ],
    }


def run_rows(study: Study, runs: Iterable[Tree]) -> Rows:
    """Cells or diverged runs, by budget and size."""
    rows = [
        {
            "run": run.get("run_id"),
            "budget": run.get("budget_flops"),
            "shape": shape(run.get("n_layers"), run.get("d_model")),
            "scale": run.get(study.scale_key),
            "tokens": run.get("n_tokens"),
            "batch": run.get("batch_tokens"),
            "rate": run.get("learning_rate"),
            "loss": run.get(study.loss_key),
        }
        for run in runs
    ]
    return sorted(rows, key=lambda row: (row["budget"] or 0, row["scale"] or 0))


def law_rows(study: Study) -> Rows:
    """What every law says about the target, and the stated prediction."""
    target = study.target
    found = target_laws(study) if target else []
    if target is None or not found:
        return []
    rows = [{"law": row["label"], "centre": row["centre"], "interval": (row["low"], row["high"])} for row in found]
    if target.predicted is not None:
        interval = (target.low, target.high)
        rows.append({"law": "stated prediction", "centre": target.predicted, "interval": interval})
    for row in rows:
        row["error"] = row["centre"] / target.measured - 1 if target.measured is not None else None
    return rows


def disagreement(study: Study) -> float | None:
    """How far the laws lie apart at the target, as a share of the loss."""
    centres = [row["centre"] for row in (target_laws(study) if study.target else [])]
    return (max(centres) - min(centres)) / (sum(centres) / len(centres)) if len(centres) > 1 else None


def surface_rows(study: Study) -> Rows:
    """Constants of every fitted surface."""
    names = ("E", "A", "B", "alpha", "beta", "a")
    return [
        {"surface": LAW_LABEL.get(f"surface_{name}", name), **{key: fit.get(key) for key in names}}
        for name, fit in (study.laws.get("surface") or {}).items()
        if isinstance(fit, Mapping)
    ]


def allocation_rows(study: Study) -> Rows:
    """The laws of the optimal split of compute."""
    parabola = study.laws.get("parabola") or {}
    rows: Rows = []
    for letter, what in (("n", study.scale_label), ("d", "tokens D")):
        exponent = number(parabola.get(f"{letter}_exponent"))
        if exponent is None:
            continue
        drawn = resamples(study.laws, f"{letter}_allocation", 2)
        interval = (band(drawn[:, 1]) if len(drawn) else None) or (None, None)
        coefficient = parabola.get(f"{letter}_coefficient")
        rows.append({"what": f"optimal {what}", "coefficient": coefficient, "exponent": exponent, "interval": interval})
    return rows


def hyper_rows(study: Study) -> Rows:
    """Laws of learning rate and batch."""
    found = study.laws.get("hyper") or {}
    rows: Rows = []
    for quantity, label in (("learning_rate", "learning rate"), ("batch", "batch (tokens)")):
        for method, law in (found.get(quantity) or {}).items():
            if isinstance(law, Mapping) and number(law.get("coefficient")) is not None:
                powers = [
                    f"{key[0].upper()}^{value:.3g}"
                    for key in law
                    if key.endswith("_exponent") and (value := number(law[key])) is not None
                ]
                row = {"quantity": label, "method": str(method).replace("_", " "), "coefficient": law["coefficient"]}
                rows.append({**row, "powers": " ".join(powers) or "constant"})
    return rows


def regret_rows(study: Study) -> Rows:
    """What following a law of rate and batch costs."""
    costs = (study.laws.get("hyper") or {}).get("regret") or {}
    return [
        {"law": str(name).replace("_", " "), "mean": cost.get("mean"), "worst": cost.get("max")}
        for name, cost in costs.items()
        if isinstance(cost, Mapping)
    ]


def plan_values(chosen: Tree | None) -> dict[str, Any] | None:
    """The run that was decided, and what else would have been as good."""
    if not chosen:
        return None
    model, memory = chosen.get("model") or {}, chosen.get("memory") or {}
    unique, tokens = number(chosen.get("unique_tokens")), number(chosen.get("n_tokens"))
    total, hours = number(memory.get("total_bytes")), number(chosen.get("hours"))
    keys = (
        *("family", "n_params_total", "n_params_non_embedding", "n_params_active", "n_tokens", "batch_tokens"),
        *("steps", "learning_rate", "total_flops", "gpu_hours", "cost"),
    )
    return {
        **{key: chosen.get(key) for key in keys},
        "shape": shape(model.get("n_layers"), model.get("d_model")),
        "model": {key: model.get(key) for key in ("n_heads", "d_ff", "seq_len")},
        "experts": model.get("experts") or None,
        "leverage": {kind: _leverage(chosen, kind) for kind in ("expected", "measured")},
        "epochs": tokens / unique if unique and tokens else None,
        "schedule": ((chosen.get("recipe") or {}).get("train") or {}).get("schedule"),
        "memory_gib": total / 2**30 if total else None,
        "wall_s": None if hours is None else 3600 * hours,
        "predicted_at": (chosen.get("prediction") or {}).get("predicted_at"),
        "components": (chosen.get("prediction") or {}).get("components") or {},
        "near": [
            {
                "shape": shape(row.get("n_layers"), row.get("d_model")),
                "chosen": "chosen" if row.get("chosen") else "",
                **{key: row.get(key) for key in ("n_params_total", "n_tokens", "loss", "relative_loss")},
            }
            for row in chosen.get("near_optimal") or []
        ],
        "warnings": list(chosen.get("warnings") or []),
    }


def run_values(run: Tree) -> dict[str, Any]:
    """What is shown of one run, a target or any other: its sizes and its result."""
    keys = ("run_id", "n_tokens", "wall_s", "tokens_per_s", "bits_per_byte", "status", "commit")
    return {
        **{key: run.get(key) for key in keys},
        "shape": shape(run.get("n_layers"), run.get("d_model")),
        "device": _device(run),
        "family": family_text(run["config"]) if run.get("config") else None,
        "by_domain": list((run.get("bits_per_byte_by_domain") or {}).items()),
    }


def regret_of_sharing(study: Study) -> dict[str, Any] | None:
    """What shared trunks cost, where controls measured it."""
    rows = sharing_regret(study)
    if not rows:
        return None
    return {
        "mean": sum(row["regret"] for row in rows) / len(rows),
        "noise": number((study.laws.get("noise") or {}).get("relative_sd")),
        "rows": [
            {
                **row,
                "rates": " / ".join(f"{rate:.3g}" for rate in row["learning_rates"]),
                "batches": " / ".join(f"{batch:,}" for batch in row["batch_tokens"]),
            }
            for row in rows
        ],
    }


def unused_vertices(study: Study) -> list[float]:
    """Budgets whose vertex no law was fitted to."""
    vertices = (study.laws.get("parabola") or {}).get("vertices") or []
    unused = [vertex for vertex in vertices if not vertex.get("used", vertex.get("inside", True))]
    return [budget for vertex in unused if (budget := number(vertex.get("budget_flops")))]


def convention_rows(study: Study) -> list[tuple[str, Any]]:
    """What was counted how."""
    stated: dict[str, Any] = {}
    for cell in study.cells[:1]:
        stated |= cell.get("conventions") or {}
    stated |= dict(study.laws.get("conventions") or {})
    return [(str(name).replace("_", " "), value) for name, value in stated.items() if value not in (None, "")]


def origin_values(runs: Sequence[Tree]) -> dict[str, list[str]]:
    """Every distinct commit, seed, device and hash of the runs."""
    found = {
        key: sorted({str(run[key]) for run in runs if run.get(key) not in (None, "")})
        for key in ("commit", "seed", "tokenizer_sha256", "data_sha256")
    }
    return {**found, "device": sorted({text for run in runs if (text := _device(run))})}


def total(runs: Iterable[Tree], key: str) -> float | None:
    """Sum over the runs that have the value."""
    values = [value for run in runs if (value := number(run.get(key))) is not None]
    return sum(values) if values else None


def _leverage(chosen: Tree, kind: str) -> dict[str, Any] | None:
    """Centre and range, with where they come from."""
    found = (chosen.get("leverage") or {}).get(kind) or {}
    if number(found.get("center")) is None:
        return None
    origin = found.get("source") or f"this study over {found.get('over')}"
    return {"center": found["center"], "interval": (found.get("low"), found.get("high")), "origin": origin}


def _device(run: Tree) -> str | None:
    device, threads = run.get("device"), run.get("threads")
    return f"{device}, {threads} threads" if device and threads else str(device) if device else None
