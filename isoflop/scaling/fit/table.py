"""Measurements as named columns: CSV or JSONL of any origin -> the columns the laws are fitted to.

A foreign table keeps its own names; `mapping` adds ours (`n_params=params,batch_tokens=batch_seqs*seq_len`), `where`
keeps rows by either name, and nothing is guessed silently: a missing column is one error that suggests a mapping, a
derived one is stated in `conventions`. Ours are n_params or flops_per_token, n_tokens, total_flops (counted),
budget_flops (planned label), loss_nats or bits_per_byte, learning_rate, batch_tokens, weight; of mixtures of experts
n_params_active, n_experts, n_active, n_shared, d_expert, granularity, activated_share.
"""

import csv
import dataclasses
import difflib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.errors import DataError, FitError
from isoflop.scaling.sweep.records import RunRecord, read_json_lines

logger = logging.getLogger(__name__)

# How other people call our columns; only used to suggest a mapping.
OTHER_NAMES = {
    "n_params": ("params", "n", "n_opt", "parameters", "num_params", "model_size", "params_no_emb", "n_params_total"),
    "flops_per_token": ("m", "m_opt", "flops_token"),
    "n_tokens": ("tokens", "d", "d_opt", "num_tokens", "train_tokens", "tokens_trained"),
    "total_flops": ("flops", "c", "compute", "flops_logged", "train_flops", "flops_bin", "budget"),
    "budget_flops": ("flops_bin", "budget", "budget_label", "flops", "c", "compute"),
    "loss_nats": ("loss", "l", "val_loss", "loss_val", "loss_opt", "final_loss", "loss_validation"),
    "bits_per_byte": ("bpb", "val_bpb", "bits_byte"),
    "learning_rate": ("lr", "eta", "peak_lr", "max_lr"),
    "batch_tokens": ("batch", "batch_size", "bs", "batch_seqs"),
    "n_params_active": ("active_params", "n_act", "dense_parameter_count", "params_active"),
    "n_experts": ("num_experts", "experts", "e", "n_routed_experts", "num_local_experts"),
    "n_active": ("k", "top_k", "num_experts_per_tok"),
    "n_shared": ("num_shared", "n_shared_experts", "shared_experts"),
    "d_expert": ("moe_intermediate_size", "expert_width"),
    "granularity": ("g",),
    "activated_share": ("activation_ratio", "a"),
}
LOSSES = ("loss_nats", "bits_per_byte")


@dataclasses.dataclass(frozen=True)
class Table:
    """Named columns of equal length, with what was assumed about them and what looks wrong."""

    columns: dict[str, np.ndarray]
    """Numbers (float64, missing as NaN) or text."""
    conventions: dict[str, str] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, object]]) -> "Table":
        """Columns from one mapping per row; keys that a row lacks, None and empty text are missing values."""
        names = list(dict.fromkeys(name for row in rows for name in row))
        return cls({name: _as_column([row.get(name) for row in rows]) for name in names})

    @classmethod
    def of(cls, runs: object) -> "Table":
        """A table of whatever holds runs: a table, files, records, or one mapping per run."""
        if isinstance(runs, Table):
            return runs
        if isinstance(runs, (str, Path)):
            return read_table(runs)
        rows = list(runs)  # type: ignore[call-overload]
        if rows and all(isinstance(row, (str, Path)) for row in rows):
            return read_table(rows)
        return cls.from_records(rows) if all(isinstance(row, RunRecord) for row in rows) else cls.from_rows(rows)

    @classmethod
    def from_records(cls, records: Iterable[RunRecord]) -> "Table":
        """Columns of run records; nested fields are left out."""
        rows = [record.to_dict() for record in records]
        return cls.from_rows([{k: v for k, v in row.items() if not isinstance(v, (dict, list))} for row in rows])

    @property
    def n_rows(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def has(self, *names: str) -> bool:
        """Whether all these columns exist as numbers with at least one value."""
        return all(
            name in self.columns and self.columns[name].dtype.kind == "f" and np.isfinite(self.columns[name]).any()
            for name in names
        )

    def numbers(self, name: str, law: str = "this fit") -> np.ndarray:
        """A numeric column. Raises FitError, with a suggestion, when it is absent or text."""
        if not self.has(name):
            raise self.missing([name], law)
        return self.columns[name]

    def text(self, name: str) -> np.ndarray:
        """A column as text, numbers in their shortest form."""
        column = self.columns[name]
        return column if column.dtype.kind == "U" else np.array([f"{value:g}" for value in column])

    def select(self, keep: np.ndarray) -> "Table":
        """The rows where `keep` is true, or those at the indices `keep`."""
        columns = {name: column[keep] for name, column in self.columns.items()}
        return Table(columns, dict(self.conventions), list(self.warnings))

    def adding(self, **columns: np.ndarray) -> "Table":
        """A copy with more columns."""
        return Table({**self.columns, **columns}, dict(self.conventions), list(self.warnings))

    def missing(self, names: Sequence[str], law: str) -> FitError:
        """The error for a law that needs `names` (alternatives written as 'a or b')."""
        options = [option for name in names for option in name.split(" or ")]
        guesses = {option: self._guess(option) for option in options}
        pairs = [f"{ours}={theirs}" for ours, theirs in guesses.items() if theirs]
        way = f"try --map {','.join(pairs)}" if pairs else "name them with --map ours=theirs"
        return FitError(
            f"{law} needs the column {' and '.join(names)}, absent or empty in the table; "
            f"it has: {', '.join(self.columns) or 'no column'}; {way}"
        )

    def loss(self, law: str, name: str | None = None) -> tuple[str, np.ndarray]:
        """Name and values of the loss column: the one asked for, else nats per token, else bits per byte."""
        for option in (name,) if name else LOSSES:
            if self.has(option):
                return option, self.columns[option]
        raise self.missing([name or " or ".join(LOSSES)], law)

    def scale(self, law: str, name: str | None = None) -> tuple[str, np.ndarray]:
        """Name and values of the model scale: n_params, else flops_per_token, else N = C/(6 D)."""
        for option in (name,) if name else ("n_params", "flops_per_token"):
            if self.has(option):
                return option, self.columns[option]
        if (
            name in (None, "n_params")
            and self.has("n_tokens")
            and (self.has("total_flops") or self.has("budget_flops"))
        ):
            self.conventions["n_params"] = "derived: total_flops / (6 n_tokens)"
            return "n_params", self.compute(law)[1] / (6 * self.columns["n_tokens"])
        raise self.missing([name or "n_params or flops_per_token"], law)

    def tokens(self, law: str) -> np.ndarray:
        """Training tokens: n_tokens, else C/M or C/(6 N)."""
        if self.has("n_tokens"):
            return self.columns["n_tokens"]
        if self.has("total_flops") or self.has("budget_flops"):
            for option, factor, text in (
                ("flops_per_token", 1.0, "flops_per_token"),
                ("n_params", 6.0, "(6 n_params)"),
            ):
                if self.has(option):
                    self.conventions["n_tokens"] = f"derived: total_flops / {text}"
                    return self.compute(law)[1] / (factor * self.columns[option])
        raise self.missing(["n_tokens"], law)

    def compute(self, law: str) -> tuple[str, np.ndarray]:
        """Where each row's training FLOPs come from, and their values: counted, else the label, else derived."""
        for option in ("total_flops", "budget_flops"):
            if self.has(option):
                self.conventions.setdefault("total_flops", f"column {option}")
                return option, self.columns[option]
        for option, factor, text in (
            ("flops_per_token", 1.0, "flops_per_token x"),
            ("n_params", 6.0, "6 x n_params x"),
        ):
            if self.has(option, "n_tokens"):
                self.conventions["total_flops"] = f"derived: {text} n_tokens"
                return "derived", factor * self.columns[option] * self.columns["n_tokens"]
        raise self.missing(["total_flops or budget_flops"], law)

    def weights(self) -> np.ndarray:
        """The weight of each row; 1 where no weights were asked for."""
        return self.columns.get("weight", np.ones(self.n_rows))

    def map(self, mapping: str) -> "Table":
        """Add our names: `ours=theirs,...`, where theirs may be a product or quotient of columns and numbers."""
        table = self
        for pair in filter(None, (part.strip() for part in mapping.split(","))):
            ours, equals, expression = (part.strip() for part in pair.partition("="))
            if not equals or not ours or not expression:
                raise FitError(f"--map {pair!r} must read ours=theirs, for example n_params=params")
            if ours not in OTHER_NAMES:
                close = difflib.get_close_matches(ours, OTHER_NAMES, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(OTHER_NAMES)}"
                logger.info("--map %s adds a column that no law reads; %s", ours, hint)
            table = table.adding(**{ours: self._evaluate(expression)})
            if expression != ours:
                table.conventions[ours] = f"= {expression}"
        return table

    def _evaluate(self, expression: str) -> np.ndarray:
        parts = [part.strip() for part in re.split(r"([*/])", expression)]
        value = self._factor(parts[0], expression)
        for operator, part in zip(parts[1::2], parts[2::2]):
            factor = self._factor(part, expression)
            if value.dtype.kind != "f" or factor.dtype.kind != "f":
                raise FitError(f"--map {expression!r}: a product needs numeric columns; name numeric ones")
            value = value * factor if operator == "*" else value / factor
        return value

    def _factor(self, name: str, expression: str) -> np.ndarray:
        if name in self.columns:
            return self.columns[name]
        number = as_number(name)
        if number is not None:
            return np.full(self.n_rows, number)
        close = difflib.get_close_matches(name, self.columns, n=1)
        hint = f"did you mean {close[0]}?" if close else f"columns: {', '.join(self.columns)}"
        raise FitError(f"--map {expression!r}: there is no column {name!r}; {hint}")

    def _guess(self, ours: str) -> str:
        numeric = {name.lower(): name for name, column in self.columns.items() if column.dtype.kind == "f"}
        for other in OTHER_NAMES.get(ours, ()):
            if other in numeric:
                return numeric[other]
        if ours == "bits_per_byte":
            return next((name for low, name in numeric.items() if "bpb" in low), "")
        close = difflib.get_close_matches(ours, numeric, n=1, cutoff=0.75)
        return numeric[close[0]] if close else ""


def read_table(paths: str | Path | Sequence[str | Path]) -> Table:
    """Read CSV or JSONL files, one below the other. Raises DataError for a missing, empty or malformed file."""
    rows: list[Mapping[str, object]] = []
    files = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    for path in files:
        if not path.is_file():
            problem = "is a folder" if path.is_dir() else "does not exist"
            raise DataError(f"table {path} {problem}; give a .csv or .jsonl file")
        rows.extend(_read_csv(path) if path.suffix.lower() in (".csv", ".tsv") else _read_runs(path))
    if not rows:
        named = ", ".join(map(str, files))
        raise DataError(f"table {named} has no rows; give a .csv with a header or a .jsonl with one run a line")
    return Table.from_rows(rows)


def _read_csv(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"table {path} is not CSV text ({error}); save it as UTF-8 CSV") from error
    if not rows:
        return []
    header = [name.strip() for name in rows[0]]
    for number, row in enumerate(rows[1:], start=2):
        if row and len(row) != len(header):
            raise DataError(f"table {path} line {number} has {len(row)} values, the header {len(header)}; repair it")
    return [dict(zip(header, row)) for row in rows[1:] if row]


def _read_runs(path: Path) -> list[dict[str, object]]:
    rows: dict[object, dict[str, object]] = {}
    for index, row in enumerate(read_json_lines(path)):
        flat = {key: value for key, value in row.items() if not isinstance(value, (dict, list))}
        rows[row.get("run_id") or f"line {index}"] = flat
    return list(rows.values())


def as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return {"true": 1.0, "false": 0.0}.get(text.lower())


def _as_column(values: Sequence[Any]) -> np.ndarray:
    numbers: list[float] = []
    for value in values:
        if value is None or (isinstance(value, str) and not value.strip()):
            numbers.append(np.nan)
        elif isinstance(value, str):
            number = as_number(value)
            if number is None:
                break
            numbers.append(number)
        else:
            numbers.append(float(value))
    else:
        return np.array(numbers, dtype=float)
    return np.array(["" if value is None else str(value) for value in values])
