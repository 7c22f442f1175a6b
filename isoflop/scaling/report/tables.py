"""What the tables and sentences of the report hold, as plain values: the words are in the templates beside this file.

A `Study` and what else is known go in; rows (dicts by column) come out, with None where something is not known.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from isoflop.pages.html import shape
from isoflop.pages.plot import number
from isoflop.recipe import Tree
from isoflop.scaling.lr_batch_law import EXPONENTS
from isoflop.scaling.report.run_figures import sharing_regret
from isoflop.scaling.report.study import LAW_LABEL, Json, Study, band, resamples, target_laws
from isoflop.scaling.sweep.family import family_text
from isoflop.scaling.sweep.records import RunRecord

Rows = list[Tree]


def target_values(study: Study) -> Tree | None:
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


def corpus_values(corpus: Json | None) -> Tree | None:
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


def token_values(tokens: Json | None) -> Tree | None:
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


def run_rows(study: Study, runs: Iterable[RunRecord]) -> Rows:
    """Cells or diverged runs, by budget and size."""
    return [
        {
            "run": run.run_id,
            "budget": run.budget_flops,
            "shape": shape(run.n_layers, run.d_model),
            "scale": study.scale(run),
            "tokens": run.n_tokens,
            "batch": run.batch_tokens,
            "rate": run.learning_rate,
            "loss": study.loss(run),
        }
        for run in sorted(runs, key=lambda run: (run.budget_flops or 0, study.scale(run)))
    ]


def law_rows(study: Study) -> Rows:
    """What every law says about the target, and the stated prediction."""
    target, found = study.target, target_laws(study)
    if target is None or not found:
        return []
    rows: Rows = [{"law": row.label, "centre": row.centre, "interval": (row.low, row.high)} for row in found]
    if target.predicted is not None:
        interval = (target.low, target.high)
        rows.append({"law": "stated prediction", "centre": target.predicted, "interval": interval})
    for row in rows:
        row["error"] = row["centre"] / target.measured - 1 if target.measured is not None else None
    return rows


def disagreement(study: Study) -> float | None:
    """How far the laws lie apart at the target, as a share of the loss."""
    centres = [row.centre for row in target_laws(study)]
    return (max(centres) - min(centres)) / (sum(centres) / len(centres)) if len(centres) > 1 else None


def surface_rows(study: Study) -> Rows:
    """Constants of every fitted surface."""
    surfaces = study.laws.surfaces if study.laws else {}
    return [
        {"surface": LAW_LABEL.get(f"surface_{name}", name), **dataclasses.asdict(fit)} for name, fit in surfaces.items()
    ]


def allocation_rows(study: Study) -> Rows:
    """The laws of the optimal split of compute."""
    rows: Rows = []
    for letter, what in (("n", study.scale_label), ("d", "tokens D")):
        law = study.allocation.law(letter) if study.allocation else None
        if law is not None:
            interval = band(resamples(study, f"{letter}_allocation")[:, 1]) or (None, None)
            rows.append({"what": f"optimal {what}", "coefficient": law[0], "exponent": law[1], "interval": interval})
    return rows


def hyper_rows(study: Study) -> Rows:
    """Laws of learning rate and batch."""
    found = study.laws.hyper if study.laws else None
    rows: Rows = []
    for laws, label in ((found.learning_rate, "learning rate"), (found.batch, "batch (tokens)")) if found else ():
        for method, law in laws.items():
            known = {key: getattr(law, key) for key in EXPONENTS.values() if getattr(law, key) is not None}
            powers = [f"{key[0].upper()}^{value:.3g}" for key, value in known.items()]
            row = {"quantity": label, "method": method.replace("_", " "), "coefficient": law.coefficient}
            rows.append({**row, "powers": " ".join(powers) or "constant"})
    return rows


def regret_rows(study: Study) -> Rows:
    """What following a law of rate and batch costs."""
    costs = study.laws.hyper.regret if study.laws and study.laws.hyper else {}
    return [{"law": name.replace("_", " "), "mean": cost.mean, "worst": cost.max} for name, cost in costs.items()]


def plan_values(chosen: Json | None) -> Tree | None:
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


def run_values(run: Json) -> Tree:
    """What is shown of one run, a target or any other: its sizes and its result."""
    keys = ("run_id", "n_tokens", "wall_s", "tokens_per_s", "bits_per_byte", "status", "commit")
    return {
        **{key: run.get(key) for key in keys},
        "shape": shape(run.get("n_layers"), run.get("d_model")),
        "device": _device(run),
        "family": family_text(run["config"]) if run.get("config") else None,
        "by_domain": list((run.get("bits_per_byte_by_domain") or {}).items()),
    }


def regret_of_sharing(study: Study) -> Tree | None:
    """What shared trunks cost, where controls measured it."""
    found = sharing_regret(study)
    if not found:
        return None
    return {
        "mean": sum(row.regret for row in found) / len(found),
        "noise": study.laws and study.laws.noise_sd,
        "rows": found,
    }


def unused_budgets(study: Study) -> list[float]:
    """Budgets whose vertex no law was fitted to."""
    vertices = study.allocation.vertices if study.allocation else ()
    return [v.budget_flops for v in vertices if not v.used and number(v.budget_flops)]


def convention_rows(study: Study) -> list[tuple[str, Any]]:
    """What was counted how: part of every law."""
    stated: Tree = {}
    for cell in study.cells[:1]:
        stated |= cell.conventions or {}
    stated |= study.laws.conventions if study.laws else {}
    return [(str(name).replace("_", " "), value) for name, value in stated.items() if value not in (None, "")]


def origin_values(runs: Sequence[RunRecord]) -> dict[str, list[str]]:
    """Every distinct commit, seed, device and hash of the runs."""
    found = {
        key: sorted({str(value) for run in runs if (value := getattr(run, key)) not in (None, "")})
        for key in ("commit", "seed", "tokenizer_sha256", "data_sha256")
    }
    return {**found, "device": sorted({text for run in runs if (text := _device(run.to_dict()))})}


def total_s(runs: Iterable[RunRecord]) -> float | None:
    """Time of all runs that say theirs."""
    known = [value for run in runs if (value := number(run.wall_s)) is not None]
    return sum(known) if known else None


def _leverage(chosen: Json, kind: str) -> Tree | None:
    """Centre and range, with where they come from."""
    found = (chosen.get("leverage") or {}).get(kind) or {}
    if number(found.get("center")) is None:
        return None
    origin = found.get("source") or f"this study over {found.get('over')}"
    return {"center": found["center"], "interval": (found.get("low"), found.get("high")), "origin": origin}


def _device(run: Json) -> str | None:
    device, threads = run.get("device"), run.get("threads")
    return (
        f"{device}, {threads} thread{'s' * (threads != 1)}" if device and threads else str(device) if device else None
    )
