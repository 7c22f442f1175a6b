"""Traps in tables of runs: what is looked for before anything is fitted, each said in a sentence with numbers.

Every check compares columns with one another or with what training implies (C = M D, D = steps x batch, a cooled
learning rate, one loss scale). None knows where a table comes from. Nothing is changed or dropped here except by
`fit_rows`, which keeps the rows that a fit can use and says how many it left out.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from isoflop.errors import FitError
from isoflop.numerics.section import by_rule
from isoflop.scaling.fit.table import LOSSES, RUN_COLUMNS, Table
from isoflop.scaling.fit.units import check_units

CLOSE = 0.02  # labels, counts and products agree within this
COOLED_RATE = 0.3  # a run that ends above this share of its peak learning rate was hardly cooled
SOURCE_COLUMNS = ("dataset", "corpus", "experiment", "counting", "param_count", "loss_split", "eval_name", "tokenizer")
SCHEDULES = ("schedule", "lr_schedule", "lr_scheduler", "lr_scheduler_type", "scheduler")
UNFINISHED = {"diverged", "crashed", "failed", "killed", "running", "preempted", "oom"}
"""States of runs whose last loss is no final one."""


def check_resamples(bootstrap: int) -> None:
    """Whether intervals can be taken from so many resamples. Raises FitError."""
    if bootstrap != 0 and not 2 <= bootstrap <= 100_000:  # more do not fit into memory
        raise FitError(f"bootstrap = {bootstrap} must be 0 (no intervals) or 2 to 100,000 resamples; 1000 is usual")


def fit_rows(table: Table, used: list[str]) -> tuple[Table, list[str]]:
    """Rows that may be fitted: finished, cooled, and with a finite number above 0 in every `used` column.

    Raises:
        FitError: no row is left.
    """
    warnings: list[str] = []
    keep = np.ones(table.n_rows, dtype=bool)

    def leave_out(bad: np.ndarray, why: str) -> None:
        if (bad & keep).any():
            warnings.append(f"{int((bad & keep).sum())} rows left out: {why}")
            keep[bad] = False

    for name in (name for name in used if name in table.columns):
        values = table.columns[name]
        leave_out(~np.isfinite(values) | (values <= 0), f"{name} is missing, not finite or not above 0")
    for name in ("status", "State", "state"):
        if name in table.columns and table.columns[name].dtype.kind == "U":
            states = np.char.lower(table.columns[name])
            for state in sorted({*states[keep].tolist()} & UNFINISHED):
                leave_out(states == state, f"{name} = {state}")
    if (hot := _never_cooled(table)) and (bad := hot[1] & keep).any() and not bad[keep].all():
        first = f"{hot[0]} = {table.text(hot[0])[bad][0]}, never cooled, while others were (the first: "
        leave_out(bad, f"{first}{table.place(int(bad.argmax()))}); --map cooled=1 keeps them")
    if "cooled" in table.columns:
        column = table.columns["cooled"]
        bad = np.char.lower(column) == "false" if column.dtype.kind == "U" else column == 0
        leave_out(bad, "cooled = false, their loss is not a final one")
    if not keep.any():
        raise FitError(f"none of {table.n_rows} rows can be fitted: {'; '.join(warnings)}")
    return (table if keep.all() else table.select(keep)), warnings


def import_checks(table: Table) -> list[str]:
    """All checks; an empty list means that nothing looks wrong."""
    counts = (_label_against_count, _product_against_compute, _tokens_against_steps)
    checks = (*counts, _uncooled, _rounded_labels, _duplicates, _several_sources, check_units)
    with np.errstate(over="ignore"):  # a number near the end of floats is some other check's business
        return [said for check in checks for said in check(table)]


def _label_against_count(table: Table) -> list[str]:
    if not table.has("budget_flops", "total_flops"):
        return []
    ratio = table.columns["total_flops"] / table.columns["budget_flops"]
    off = np.isfinite(ratio) & (ratio > 0) & (np.abs(ratio - 1) > CLOSE)
    if not off.any():
        return []
    low, median, high = (float(q) for q in np.percentile(ratio[off], [0, 50, 100]))
    factor = f"{median:.4f}" if high - low < CLOSE * median else f"{low:.3f} to {high:.3f} (median {median:.3f})"
    where = _rows_named(table, off)
    hint = "; the label may be rounded to one digit" if _one_digit(table.columns["budget_flops"][off]) else ""
    if median > 1 / CLOSE or (abs(median - round(median)) < 0.01 * median and round(median) >= 2):
        hint = f"; a factor {round(median)} is a difference of counting (forward only, or per-worker), not of rounding"
    return [
        f"total_flops is {factor} times the label budget_flops in {int(off.sum())} of {table.n_rows} rows{where}{hint}"
        "; the fits use total_flops"
    ]


def _product_against_compute(table: Table) -> list[str]:
    name = "total_flops" if table.has("total_flops") else "budget_flops"
    found = []
    for text, ratio in _products_over(table, name):
        ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
        off = np.abs(ratio - 1) > CLOSE
        if off.any():
            low, median, high = (float(q) for q in np.percentile(ratio, [0, 50, 100]))
            found.append(
                f"{text} is {low:.3f} to {high:.3f} times {name} (median {median:.3f}; {int(off.sum())} of "
                f"{len(ratio)} rows off by more than 2%): parameters and FLOPs are counted by different conventions "
                "(embedding, head, attention); the law holds for this counting only"
            )
    return found


def _products_over(table: Table, compute: str) -> Iterator[tuple[str, np.ndarray]]:
    """The compute that follows from each measure of size over the one that a column states, where both are known."""
    for scale, factor, text in (("n_params", 6.0, "6 n_params n_tokens"), ("flops_per_token", 1.0, "M n_tokens")):
        if table.has(scale, "n_tokens", compute):
            yield text, factor * table.columns[scale] * table.columns["n_tokens"] / table.columns[compute]


def _tokens_against_steps(table: Table) -> list[str]:
    if not table.has("n_tokens", "steps"):
        return []
    if table.has("batch_tokens"):
        batch, text = table.columns["batch_tokens"], "steps x batch_tokens"
    elif table.has("batch_seqs", "seq_len"):
        batch, text = table.columns["batch_seqs"] * table.columns["seq_len"], "steps x batch_seqs x seq_len"
    else:
        return []
    ratio = table.columns["steps"] * batch / table.columns["n_tokens"]
    off = np.isfinite(ratio) & (np.abs(ratio - 1) > CLOSE)
    if not off.any():
        return []
    low, high = float(ratio[off].min()), float(ratio[off].max())
    return [
        f"{text} is {low:.4g} to {high:.4g} times n_tokens in {int(off.sum())} of {table.n_rows} rows"
        f"{_rows_named(table, off)}; one of the three columns is planned, not achieved, or in another unit"
    ]


def _uncooled(table: Table) -> list[str]:
    found = []
    rate = table.first_of(("learning_rate", "lr"))
    final = table.first_of(("min_lr", "final_lr", "min_learning_rate"))
    if rate and final:
        share = table.columns[final] / table.columns[rate]
        hot = np.isfinite(share) & (share > COOLED_RATE)
        if hot.any():
            found.append(
                f"{int(hot.sum())} of {table.n_rows} rows end at more than {COOLED_RATE:.0%} of their peak learning "
                f"rate (up to {float(share[hot].max()):.0%}): hardly cooled, their loss is too high for a law"
            )
    if (never := _never_cooled(table)) and never[1].all():
        found.append(f"all {table.n_rows} rows ran at a constant rate without cooldown: no final losses")
    kinds = next((Counter(table.text(name).tolist()) for name in SCHEDULES if name in table.columns), Counter())
    if len(kinds) > 1:
        shown = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common(4))
        found.append(
            f"{len(kinds)} schedules share one law: {shown}; their losses differ at equal size and tokens: --where"
        )
    name = next((name for name in RUN_COLUMNS if name in table.columns), None)
    steps = table.first_of(("steps", "step", "n_tokens"))
    if name and steps:
        stages = dict.fromkeys(zip(table.text(name).tolist(), table.columns[steps].tolist()))
        many = [run for run, count in Counter(run for run, _ in stages).items() if count > 1]
        if many:
            found.append(
                f"{len(many)} runs (column {name}, for example {many[0]}) appear at several values of {steps}: "
                "intermediate checkpoints of one schedule are uncooled; keep the last of each"
            )
    return found


def _never_cooled(table: Table) -> tuple[str, np.ndarray] | None:
    """The column of schedules, and the rows whose rate was constant to the end; None: nothing says so."""
    name = next((n for n in SCHEDULES if n in table.columns and table.columns[n].dtype.kind == "U"), None)
    if name is None or "cooled" in table.columns:
        return None
    schedules = np.char.lower(table.columns[name])
    cooled = np.char.find(schedules, "cool") >= 0
    if table.has("cooldown_fraction"):
        cooled &= np.nan_to_num(table.columns["cooldown_fraction"], nan=1.0) > 0
    return name, (np.char.find(schedules, "constant") >= 0) & ~cooled


def _rounded_labels(table: Table) -> list[str]:
    """One-digit budgets that nothing else in the table confirms."""
    name = "total_flops" if table.has("total_flops") else "budget_flops"
    if not table.has(name):
        return []
    values = np.unique(table.columns[name][np.isfinite(table.columns[name]) & (table.columns[name] > 0)])
    other = "budget_flops" if name == "total_flops" else ""
    if len(values) < 3 or not _one_digit(values) or (other and table.has(other)):
        return []
    if any(np.nanmedian(np.abs(ratio - 1)) < CLOSE for _, ratio in _products_over(table, name)):
        return []  # the counted compute confirms them
    steps = np.diff(np.log(values))
    if np.ptp(steps) < 0.1 * steps.mean():
        return []  # evenly spaced: planned as they stand
    return [
        f"all {len(values)} values of {name} have one significant digit and uneven ratios ({np.exp(steps.min()):.2f} "
        f"to {np.exp(steps.max()):.2f}): may be rounded, which moves every exponent; map the counted FLOPs"
    ]


def _duplicates(table: Table) -> list[str]:
    found = []
    copies = table.n_rows - len(set(zip(*(table.text(name).tolist() for name in table.columns))))
    if copies:
        found.append(f"{copies} rows are exact copies of another row; they count twice: remove them")
    sizes = ("n_params", "flops_per_token", "n_tokens", "learning_rate", "batch_tokens", "seed")
    identity = [name for name in (*sizes, "n_experts", "n_active") if table.has(name)]
    if table.first_of(LOSSES) and len(identity) >= 2:
        settings = set(zip(*(table.columns[name].tolist() for name in identity)))
        repeated = table.n_rows - len(settings) - copies
        if repeated > 0:
            found.append(
                f"{repeated} rows repeat the {', '.join(identity)} of another row with a different loss or setting "
                "(seeds, or a varied setting that is not mapped); resample by setting"
            )
    return found


def _several_sources(table: Table) -> list[str]:
    found = []
    for name in (name for name in (*SOURCE_COLUMNS, *HELD_OUT) if name in table.columns):
        values = Counter(table.text(name).tolist())
        if len(values) > 1:
            shown = ", ".join(f"{value} ({count})" for value, count in values.most_common(4))
            found.append(
                f"column {name} holds {len(values)} kinds of runs: {shown}; one law is fitted to all: use --where"
            )
    name = "tokenizer_sha256"
    if name in table.columns and len(set(table.text(name).tolist())) > 1 and not table.has("bits_per_byte"):
        found.append(f"column {name} differs between rows: losses per token cannot be compared; use bits_per_byte")
    return found


HELD_OUT = ("held_out_sha256", "held_out_bytes")
"""What records say of the text that their loss was measured on."""


def held_out(table: Table) -> tuple[str, int | None]:
    """Hash and byte count of the held-out text, each where all rows agree on it; else "" and None."""
    seen = (set(table.text(name).tolist()) if name in table.columns else {""} for name in HELD_OUT)
    sha256, n_bytes = (values.pop() if len(values) == 1 and not values & {"", "nan"} else "" for values in seen)
    return sha256, int(float(n_bytes)) if n_bytes else None


def families(table: Table) -> dict[str, int]:
    """Kinds of models in a table by what their columns say of experts, latents and number formats, with row counts."""

    def column(name: str, default: float) -> np.ndarray:
        values = table.columns[name] if table.has(name) else np.full(table.n_rows, default)
        return np.where(np.isfinite(values), values, default)

    experts, active, shared = column("n_experts", 1.0), column("n_active", 1.0), column("n_shared", 0.0)
    latent = column("d_kv_latent", 0.0) > 0
    formats = table.text("numerics").tolist() if "numerics" in table.columns else [""] * table.n_rows
    kinds = [
        ("dense" if e <= 1 else f"{e:g} experts, {a:g} active, {s:g} shared")
        + (", latent attention" if m else "")
        + (f", {rules}" if (rules := by_rule(text)) else "")
        for e, a, s, m, text in zip(experts, active, shared, latent, formats)
    ]
    return dict(Counter(kinds))


def _one_digit(values: np.ndarray) -> bool:
    mantissa = values / 10.0 ** np.floor(np.log10(values) + 1e-9)
    return bool(len(values) and (np.abs(mantissa - np.round(mantissa)) < 1e-6).all())


def _rows_named(table: Table, rows: np.ndarray) -> str:
    """' (all of kind=isoflop)' if some text column tells these rows from the others, else the first few labels."""
    if rows.all():
        return ""
    for name, column in table.columns.items():
        if column.dtype.kind != "U":
            continue
        inside, outside = set(column[rows].tolist()), set(column[~rows].tolist())
        if len(inside) <= 3 and not inside & outside:
            return f" (all of {name}={' or '.join(sorted(inside))}, no others)"
    label = next((name for name in (*RUN_COLUMNS, "budget_flops") if name in table.columns), None)
    if label is None:
        return ""
    first = list(dict.fromkeys(table.text(label)[rows].tolist()))[:4]
    return f" ({label} {', '.join(first)}{' ...' if int(rows.sum()) > len(first) else ''})"
