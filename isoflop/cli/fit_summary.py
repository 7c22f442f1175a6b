"""What `fit`, `predict` and `next` show: laws, exponents, losses with intervals, runs to buy, warnings."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from isoflop.cli.console import flat, print_rows, print_table, print_warnings, say, shown
from isoflop.scaling.fit.law_set import LOSS_RISES
from isoflop.scaling.laws import CONSTANTS, Laws, Vertex
from isoflop.scaling.plan.next_cells import NextCells

NEXT_FACTOR = 10
"""The plan that is proposed has this many times the largest budget: well inside what is safe to extrapolate."""


def print_laws(laws: Laws, out: Path, tables: Iterable[Path]) -> None:
    """All laws of a sweep, and the command that plans with them, with the sweep's own ladder if it lies by `tables`."""
    largest = laws.largest_budget_flops or 0.0
    at = f" at {len(laws.budgets)} budgets" if laws.budgets else ""
    say(f"{laws.n_runs} runs{at}, up to {largest:.3g} FLOPs")
    size = "M" if laws.scale == "flops_per_token" else "N"
    unit = {"flops_per_token": "FLOPs per token", "n_params": "parameters"}[laws.scale]
    say(f"loss: {laws.loss.replace('_', ' ')}; {size}: {unit}; D: tokens; C: FLOPs")
    say(f"\nL({size}, D) = E + A/{size}^alpha + B/D^beta, and the best {size} grows as C^a:")
    print_table(
        [
            {"fit": name, **{key: _short(getattr(law, key)) for key in (*CONSTANTS, "a")}}
            for name, law in laws.surfaces.items()
        ]
    )
    lines = []
    if laws.allocation and (best := laws.allocation.law("n")) and (tokens := laws.allocation.law("d")):
        lines += [(f"best {size}", f"{_short(best[0])} C^{_short(best[1])}")]
        lines += [("best D", f"{_short(tokens[0])} C^{_short(tokens[1])}  (from the {laws.allocation.source})")]
    if laws.lstar:
        lines.append(("best loss", f"{_short(laws.lstar.E)} + {_short(laws.lstar.k)} C^-{_short(laws.lstar.g)}"))
    if laws.hyper:
        for name, law in (
            ("learning rate", laws.hyper.own_law.learning_rate),
            ("batch", laws.hyper.own_law.batch_tokens),
        ):
            powers = " ".join(f"{quantity}^{_short(value)}" for quantity, value in law.exponents.items())
            lines.append((name, f"{_short(law.coefficient)} {powers}".strip()))
    print_rows(lines)
    exponents = _exponents(laws, size)
    if exponents:
        say("\nExponents:")
        print_table(exponents)
    if laws.allocation and laws.allocation.vertices:
        say("\nOptimum of each budget:")
        print_table(list(map(_vertex_row, laws.allocation.vertices)))
    lines = [("noise of a run", f"{laws.noise_sd:.2%}")] if laws.noise else []
    if laws.rehearsal:
        r = laws.rehearsal
        text = f"without the largest budget its runs were predicted {r.relative_error:+.2%} off"
        lines.append(("rehearsal", f"{text}, at {r.extrapolation_factor:.3g} times the compute"))
    for task, law in laws.benchmarks.items():
        sds = [f"bits {law.bits_sd:.2%}", *(f"{metric} {sd:.3f}" for metric, sd in law.metrics_sd.items())]
        lines.append((f"benchmark {task}", f"{law.n_runs} runs; spread of a run: {', '.join(sds)}"))
    say("")
    print_rows(lines)
    print_inferences(laws.inferences)
    print_warnings(laws.warnings)
    if laws.hyper:
        print_warnings(laws.hyper.warnings)
    if any(text.startswith(LOSS_RISES) for text in laws.warnings):
        say("next: check these runs and their losses, and fit again")
        return
    ladders = (table.parent / "ladder.toml" for table in tables)
    ladder = next((f" --ladder {path}" for path in ladders if path.is_file()), "")
    say(f"next: isoflop plan {out}{ladder} --budget-flops {NEXT_FACTOR * largest:.3g}")


def print_law(found: dict[str, Any]) -> None:
    """One law of a table of runs, as its JSON has it."""
    for name, fit in (found.get("fits") or {"": found}).items():
        if name:
            say(f"{name}:")
        intervals = fit.get("interval_95") or {}
        rows: list[tuple[str, str]] = []
        for key, value in fit.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                interval = intervals.get(key) or fit.get(f"{key}_interval_95")
                rows.append((key, shown(value) + (f"  (95%: {shown(interval)})" if interval else "")))
        print_rows(rows)
    for part in ("optimum", "dense", "learning_rate", "batch", "own_law", "regret"):
        print_rows(flat(found.get(part) or {}, f"{part}.", depth=3))
    vertices = [vertex for vertex in found.get("vertices") or () if "budget_flops" in vertex]
    print_table([_vertex_row(Vertex(**vertex)) for vertex in vertices])
    print_rows((f"counted: {key}", shown(value)) for key, value in found["conventions"].items())
    print_rows((f"left out: {key}", shown(value)) for key, value in (found.get("skipped") or {}).items())
    print_inferences(found["inferences"])
    print_warnings(found["warnings"])


def print_predictions(found: dict[str, Any], inferences: Iterable[str]) -> None:
    """Losses with intervals, the laws side by side, one line a run; the reason where there is none."""
    say(f"loss in {found['unit'].replace('_', ' ')}, {found['level']:.0%} interval")
    rows = found["predictions"]
    size = "flops_per_token" if any("flops_per_token" in row for row in rows) else "n_params"
    print_table(
        [
            {
                **{key: _short(row.get(key)) for key in (size, "n_tokens", "total_flops")},
                **{key: _loss(row[key]) for key in ("center", "low", "high")},
                **{
                    name: _loss(row["by_law"].get(name))
                    for name in next((r["by_law"] for r in rows if r["by_law"]), {})
                },
            }
            for row in rows
        ]
    )
    print_inferences(inferences)
    print_warnings(row["reason"] for row in rows if row["center"] is None)


def print_next(made: NextCells) -> None:
    """The runs to buy and what each should leave of the interval."""
    print_table(
        [
            {
                "budget": f"{run.budget_flops:.3g}",
                "size": _short(run.scale),
                "tokens": _short(run.n_tokens),
                "cost": _short(run.cost),
                "width left": f"{left:.2%}",
            }
            for run, left in zip(made.runs, made.width_left)
        ]
    )
    say(made.verdict)


def print_inferences(inferences: Iterable[str]) -> None:
    """What was read that was not written so."""
    for text in inferences:
        say(f"  inferred: {text}")


def _exponents(laws: Laws, size: str) -> list[dict[str, str]]:
    rows: list[tuple[str, float | None, Iterable[float] | None]] = []
    if laws.allocation:
        allocation = laws.allocation
        rows += [(f"best {size} with C", allocation.n_exponent, allocation.n_exponent_interval_95)]
        rows += [("best D with C", allocation.d_exponent, allocation.d_exponent_interval_95)]
    if laws.lstar:
        rows.append(("reducible loss with C (-g)", -laws.lstar.g, [-x for x in _interval(laws.lstar, "g")[::-1]]))
    for name, law in laws.surfaces.items():
        if law.interval_95:
            rows += [(f"{key}, {name}", getattr(law, key), _interval(law, key)) for key in ("alpha", "beta")]
    return [
        {"exponent": name, "value": _short(value), "95% interval": " to ".join(map(_short, interval or ())) or "-"}
        for name, value, interval in rows
        if value is not None
    ]


def _interval(law: Any, key: str) -> list[float]:
    return list((law.interval_95 or {}).get(key, ()))


def _vertex_row(vertex: Vertex) -> dict[str, str]:
    state = "inside" if vertex.inside else "outside, kept" if vertex.used else "outside, left out"
    return {
        "budget": f"{vertex.budget_flops:.3g}",
        "sizes": str(len({point["scale"] for point in vertex.points})),
        "best size": _short(vertex.scale_opt),
        "best tokens": _short(vertex.tokens_opt),
        "loss": f"{vertex.loss:.4f}" if math.isfinite(vertex.loss) else "-",
        "tested sizes": state,
    }


def _short(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.4g}"


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
