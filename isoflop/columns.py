"""Tables as other programs write them -> named columns of numbers or text, and a note for everything that was inferred.

A cell is read as the number that its writer meant (`1,234,567`, `2,95` in a file of decimal commas, `6.4M`, `N/A` for a
missing one) only where the file leaves no doubt. A column with a cell that is no number stays text, and the first such
cell is kept with its line: whoever needs numbers refuses by it. Files are read by `isoflop.rows`.
"""

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.errors import DataError, FitError, did_you_mean
from isoflop.rows import Rows, read_rows

MISSING = {"", "-", "--", "\u2013", "\u2014", "nan", "na", "n/a", "#n/a", "none", "null", "missing"} | {
    *("#div/0!", "#value!", "#ref!", "#num!", "#name?", "#null!"),
}
"""How others write a missing number, in small letters; the last two lines are what spreadsheets leave of an error."""
POWERS = {"k": 3, "K": 3, "M": 6, "B": 9, "b": 9, "G": 9, "T": 12}
POWERS |= {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
"""Suffixes that leave no doubt; `m` (a million or a thousandth), `%` and units do."""
NUMBER = re.compile(r"([+-]?)(\d[\d.,'\u2019_\s]*|[.,]\d+)(?:[eE]([+-]?\d+))?\s*([A-Za-z]*)")
GROUPED = re.compile(r"\d{1,3}(?:,\d{2,3})*,\d{3}|\d{1,3}(?P<mark>[.'\u2019_\s])\d{3}(?:(?P=mark)\d{3})*")
"""A whole number with thousands separators (commas also as in India)."""
POWER_OF_TEN = re.compile(r"\s*[x*\u00d7\u00b7]\s*10\^\{?([+-]?\d+)\}?")
SIGNS = {0x2212: "-"}
DOUBT = "may be a decimal mark or a thousands separator: write numbers with a decimal point only"
BOOLEANS = {"true": 1.0, "false": 0.0}
OTHER_NAMES = {
    "n_params": ("params", "n", "n_opt", "parameters", "num_params", "model_size", "params_no_emb", "n_params_total"),
    "flops_per_token": ("m", "m_opt", "flops_token"),
    "n_tokens": ("tokens", "d", "d_opt", "num_tokens", "train_tokens", "tokens_trained", "total_tokens", "tokens_seen"),
    "total_flops": ("flops", "c", "compute", "flops_logged", "train_flops", "flops_bin", "budget"),
    "budget_flops": ("flops_bin", "budget", "budget_label", "flops", "c", "compute"),
    "loss_nats": (
        *("loss", "l", "val_loss", "loss_val", "loss_opt", "final_loss", "loss_validation", "eval_loss", "test_loss"),
        *("validation_loss", "valid_loss", "final_val_loss", "val_loss_nats"),
    ),
    "bits_per_byte": ("bpb", "val_bpb", "bits_byte"),
    "perplexity": ("ppl", "val_ppl", "perplexity", "val_perplexity", "eval_perplexity", "eval_ppl"),
    "learning_rate": ("lr", "eta", "peak_lr", "max_lr"),
    "batch_tokens": ("batch", "batch_size", "bs", "batch_seqs"),
    "error": ("err", "error_rate", "top1_error"),
    "unique_tokens": ("unique", "corpus_tokens"),
    "n_params_active": ("active_params", "n_act", "dense_parameter_count", "params_active"),
    "n_experts": ("num_experts", "experts", "e", "n_routed_experts", "num_local_experts"),
    "n_active": ("k", "top_k", "num_experts_per_tok"),
    "n_shared": ("num_shared", "n_shared_experts", "shared_experts"),
    "d_expert": ("moe_intermediate_size", "expert_width"),
    "granularity": ("g",),
    "activated_share": ("activation_ratio", "a"),
}
"""How others call what laws are fitted to, in small letters, _ for anything else; only used to suggest a mapping."""
RUNS = "files, or a list with one mapping per run, as [{'n_params': 1e6, ...}, ...]; df.to_dict('records') makes one"
UNIT_IN_NAME = {
    "bits_per_byte": r"bpb|bits?[ _/-]*(per|/)[ _/-]*byte",
    "perplexity": r"ppl|perplexity",
    "loss_nats": r"nats?",
    "bits per token": r"bits?",
}
"""What a name says of the unit of a loss, the first that fits."""


@dataclass(frozen=True)
class Columns:
    """What was read: columns of equal length, the cells that stand in the way of numbers, and what was inferred."""

    values: dict[str, np.ndarray]
    """Numbers (float64, missing as NaN) or text."""
    no_number: dict[str, str]
    """Column -> its first cell that is no number, as 'runs.csv line 9: "big" is no number'."""
    notes: list[str]
    places: np.ndarray
    """Where each row stands, as 'runs.csv line 9'."""
    objects: dict[str, list[Any]]
    """Columns of JSON objects and lists, which are no numbers and no text."""


def read_columns(files: Sequence[Path]) -> Columns:
    """Read files, one below the other. Raises DataError: missing, no rows, no table, two columns of one name."""
    sources = [read_rows(path) for path in files]
    if not any(source.rows for source in sources):
        named = ", ".join(map(str, files))
        raise DataError(f"table {named} has no rows; give a .csv with a header or a .jsonl with one run a line")
    return _columns(sources)


def runs_of(given: object) -> list[Any]:
    """Files, or one mapping or record per run, as a list. Raises DataError: neither."""
    if isinstance(given, (str, Path)):
        return [given]
    if isinstance(given, (Mapping, bytes)) or hasattr(given, "columns") or not isinstance(given, Iterable):
        raise DataError(f"runs = {type(given).__name__} must be {RUNS}")
    return list(given)


def columns_of_rows(rows: Sequence[Mapping[str, object]]) -> Columns:
    """Columns from one mapping per row; keys that a row lacks, None and empty text are missing values."""
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise DataError(f"row {number} of the runs is {_shown(row)}: runs must be {RUNS}")
    return _columns([Rows(rows, [f"row {number}" for number in range(1, len(rows) + 1)])])


def as_number(text: str) -> float | None:
    """One cell alone as a number; None where it is none, missing, or may be read in two ways."""
    value = _read(text, next(iter(_decimal_marks([text])), None if "," in text else "."))
    return BOOLEANS.get(text.lower()) if value is None or math.isnan(value) else value


def product_of(columns: Mapping[str, np.ndarray], expression: str) -> np.ndarray:
    """A product or quotient of columns and numbers, as in `batch_seqs*seq_len`. Raises FitError: no such column."""

    def factor(name: str) -> np.ndarray:
        if name in columns:
            return columns[name]
        number = as_number(name)
        if number is not None:
            return np.full(len(next(iter(columns.values()), ())), number)
        hint = did_you_mean(name, columns, f"columns: {', '.join(columns)}")
        raise FitError(f"--map {expression!r}: there is no column {name!r}; {hint}")

    parts = parts_of(columns, expression)
    value = factor(parts[0])
    for operator, part in zip(parts[1::2], parts[2::2]):
        other = factor(part)
        if value.dtype.kind != "f" or other.dtype.kind != "f":
            raise FitError(f"--map {expression!r}: a product needs numeric columns; name numeric ones")
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # such rows are left out and named later
            value = value * other if operator == "*" else value / other
    return value


def pairs_of(mapping: object) -> list[str]:
    """The pairs of `ours=theirs,...`; a comma inside double quotes parts nothing. Raises FitError: no text."""
    if not isinstance(mapping, str):
        raise FitError(f"mapping = {_shown(mapping)} must be text, as 'n_params=params,loss_nats=val_loss'")
    pairs = (pair.strip() for pair in re.split(r',(?=(?:[^"]*"[^"]*")*[^"]*$)', mapping))
    return [pair for pair in pairs if pair]


def parts_of(columns: Iterable[str], expression: str) -> list[str]:
    """Factors and the operators between them: a column of the whole name wins, so `val/loss` may be one."""
    names = "|".join(re.escape(name) for name in sorted(columns, key=len, reverse=True))
    parts, left = [], expression.strip()
    while left:
        match = re.match(rf"\"[^\"]*\"|({names or '(?!)'})(?=\s*(?:[*/]|$))|[^*/]+", left)
        parts.append(match[0].strip().strip('"') if match else "")
        left = left[match.end() if match else 0 :].lstrip()
        parts += [*left[:1]]
        left = left[1:].lstrip()
    return parts + [""] * (len(parts) % 2 == 0)


def likely_column(columns: Mapping[str, np.ndarray], ours: str) -> str:
    """The numeric column that `ours` is likely to be, as --map names it; empty where none is."""
    plain = {
        re.sub(r"[^a-z0-9]+", "_", re.sub(r"[(\[].*", "", name.lower())).strip("_"): name
        for name, column in columns.items()
        if column.dtype.kind == "f"
    }
    close = difflib.get_close_matches(ours, plain, n=1, cutoff=0.75)
    other = next((other for other in OTHER_NAMES.get(ours, ()) if other in plain), close[0] if close else "")
    if not other and ours == "bits_per_byte":
        other = next((low for low in plain if "bpb" in low), "")
    name = plain.get(other, "")
    return f'"{name}"' if "," in name else name


def unit_in(name: str) -> str:
    """What a name, or a cell that names a unit, says of the unit of a loss; empty where it says nothing."""
    said = (u for u, words in UNIT_IN_NAME.items() if re.search(rf"(?i)(?<![a-z])({words})(?![a-z])", name))
    return next(said, "")


def last_rows(names: Sequence[np.ndarray]) -> np.ndarray:
    """Indices of the last row of each name (one or more columns), in the order of the first ones; unnamed rows stay."""
    keys = zip(*(column.tolist() for column in names))
    named = (key if key[0] and key[0] == key[0] else (row,) for row, key in enumerate(keys))
    return np.array([*{key: row for row, key in enumerate(named)}.values()], dtype=int)


def _read(text: str, decimal: str | None) -> float | None:
    """The number that a cell spells where `decimal` is its file's decimal mark (None: in doubt); None: no number."""
    text = POWER_OF_TEN.sub(r"e\1", text.strip().translate(SIGNS))
    if text.lower() in MISSING:
        return math.nan
    if decimal != "," and "_" not in text:
        try:
            return float(text)
        except ValueError:
            pass
    match = NUMBER.fullmatch(text)
    if not match or decimal is None or (match[4] and match[4] not in POWERS):
        return None
    whole, _, fraction = match[2].strip().partition(decimal)
    if not (whole.isdigit() or not whole or GROUPED.fullmatch(whole)) or (fraction and not fraction.isdigit()):
        return None
    digits = "".join(filter(str.isdigit, whole)) or "0"
    return float(f"{match[1]}{digits}.{fraction or '0'}e{int(match[3] or 0) + POWERS.get(match[4], 0)}")


def _decimal_marks(cells: Iterable[object]) -> Counter[str]:
    """How many cells show which decimal mark: 2.95 a point, 1,234,567 a point, 2,95 a comma, 1,234 neither."""
    found: Counter[str] = Counter()
    for cell in cells:
        match = NUMBER.fullmatch(cell.strip()) if isinstance(cell, str) else None
        if not match or not {*match[2]} & {".", ","}:
            continue
        body = match[2].strip()
        last = max(".,", key=body.rfind)
        other = "." if last == "," else ","
        head, _, tail = body.partition(last)
        if body.count(last) > 1:
            found[other] += bool(GROUPED.fullmatch(body))  # else a date or a version
        elif other in head or len(tail) != 3 or not 1 <= len(head) <= 3 or head[0] == "0" or match[3]:
            found[last] += 1
    return +found


def _decimal(marks: Counter[str], cells: Sequence[object]) -> str | None:
    """The decimal mark of one column: what its own cells show, else what its file shows; None where in doubt."""
    shown = _decimal_marks(cells)
    if shown:
        return max(".,", key=shown.__getitem__)  # cells that show the other mark are no numbers then
    seen = {mark for cell in cells if isinstance(cell, str) and NUMBER.fullmatch(cell.strip()) for mark in cell}
    if "," in seen:
        return next(iter(marks)) if len(marks) == 1 and "." not in seen else None
    return None if "." in seen and [*marks] == [","] else "."


def _columns(sources: Sequence[Rows]) -> Columns:
    places = np.array([place for source in sources for place in source.places], dtype=str)
    found = Columns({}, {}, [note for source in sources for note in source.notes], places, {})
    marks = [_decimal_marks(cell for row in source.rows for cell in row.values()) for source in sources]
    for name in dict.fromkeys(name for source in sources for row in source.rows for name in row):
        _add_column(found, name, sources, marks)
    return found


def _add_column(found: Columns, name: str, sources: Sequence[Rows], marks: Sequence[Counter[str]]) -> None:
    """Read one column of all files into numbers or text, with its notes and its first cell that is no number."""
    numbers: list[float] = []
    raw: list[object] = []
    inferred: dict[str, tuple[int, str]] = {}
    wrong = ""
    n_text = n_nested = n_plain = 0
    for source, seen in zip(sources, marks):
        cells = [row.get(name) for row in source.rows]
        raw += cells
        decimal = _decimal(seen, cells)
        for cell, place in zip(cells, source.places):
            nested, flag = isinstance(cell, (dict, list)), isinstance(cell, (bool, np.bool_))
            value = math.nan if cell is None else None if nested else _value(cell, decimal)
            is_text = isinstance(cell, str)
            if value is None and is_text and cell.strip().lower() in BOOLEANS:
                value, flag = BOOLEANS[cell.strip().lower()], True
            if decimal is None and is_text and {*cell} & {".", ","} and NUMBER.fullmatch(cell.strip()):
                value = None
            n_nested += nested
            n_text += value is None
            n_plain += value is not None and not math.isnan(value)
            if value is None or flag:
                why = DOUBT if is_text and NUMBER.fullmatch(cell.strip()) and decimal is None else "is no number"
                wrong = wrong or f"{place}: {_shown(cell)} {why}"
            elif math.isinf(value):
                inferred.setdefault("infinite", (1, f"{_shown(cell)} ({place}) read as infinite"))
            elif is_text and cell.strip() and not _is_plain(cell):
                kind = "missing" if math.isnan(value) else "".join(sorted({*re.sub(r"\d", "", cell)}))
                count, example = inferred.get(kind, (0, ""))
                spelt = "missing" if math.isnan(value) else f"{value:.15g}"
                inferred[kind] = (count + 1, example or f"{cell.strip()!r} ({place}) read as {spelt}")
            numbers.append(math.nan if value is None else value)
    if wrong:
        found.no_number[name] = wrong
    if n_nested and n_nested == sum(cell is not None for cell in raw):
        found.objects[name] = raw
        return
    if n_text or (not n_plain and any(isinstance(cell, str) and cell.strip() for cell in raw)):
        found.values[name] = np.array(["" if cell is None else str(cell) for cell in raw])
        return
    found.values[name] = np.array(numbers, dtype=float)
    for count, example in inferred.values():
        found.notes.append(f"column {name}: {example}" + (f", and {count - 1} cells like it" if count > 1 else ""))


def _value(cell: object, decimal: str | None) -> float | None:
    if isinstance(cell, str):
        return _read(cell, decimal)
    try:
        return float(cell)  # type: ignore[arg-type]
    except OverflowError:
        return math.inf if cell > 0 else -math.inf  # type: ignore[operator]
    except (TypeError, ValueError):
        return None


def _is_plain(text: str) -> bool:
    try:
        return not math.isnan(float(text)) and "_" not in text
    except ValueError:
        return False


def _shown(cell: object) -> str:
    text = repr(cell)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"
