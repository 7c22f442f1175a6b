"""Measurements as named columns: CSV or JSONL of any origin -> the columns the laws are fitted to.

A foreign table keeps its own names; `mapping` adds ours (`n_params=params,batch_tokens=batch_seqs*seq_len`), `where`
keeps rows by either name, and nothing is guessed silently: a missing column is one error that suggests a mapping, a
derived one is stated in `conventions`. Ours are n_params or flops_per_token, n_tokens, total_flops (counted),
budget_flops (planned label), loss_nats or bits_per_byte, learning_rate, batch_tokens, weight; of mixtures of experts
n_params_active, n_experts, n_active, n_shared, d_expert, granularity, activated_share.
"""

import dataclasses
import difflib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from isoflop.columns import Columns, columns_of_rows, last_rows, product_of, read_columns
from isoflop.errors import DataError, FitError
from isoflop.scaling.sweep.records import RunRecord

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
    no_number: dict[str, str] = dataclasses.field(default_factory=dict)
    """Column -> its first cell that is no number, with its place; whoever needs numbers refuses by it."""

    @classmethod
    def _of_columns(cls, read: Columns) -> "Table":
        return cls(read.values, warnings=read.notes, no_number=read.no_number)

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, object]]) -> "Table":
        """Columns from one mapping per row; keys that a row lacks, None and empty text are missing values."""
        return cls._of_columns(columns_of_rows(rows))

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
        return cls.from_rows([record.to_dict() for record in records])

    @property
    def n_rows(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def has(self, *names: str) -> bool:
        """Whether all these columns exist as numbers with at least one value.

        Raises DataError where a column that must be numbers (one of `OTHER_NAMES`) has a cell that is none: it would
        be taken for absent, and another column for it.
        """
        for name in (name for name in names if name in OTHER_NAMES and name in self.no_number):
            raise self.unreadable(name)
        return all(
            name in self.columns and self.columns[name].dtype.kind == "f" and np.isfinite(self.columns[name]).any()
            for name in names
        )

    def numbers(self, name: str, law: str = "this fit") -> np.ndarray:
        """A numeric column. Raises FitError, with a suggestion, when it is absent; DataError when it is text."""
        if name in self.no_number:
            raise self.unreadable(name)
        if not self.has(name):
            raise self.missing([name], law)
        return self.columns[name]

    def unreadable(self, name: str) -> DataError:
        """The error for a column that must be numbers and is not."""
        return DataError(f"column {name}, {self.no_number[name]}; write it in digits (6.4e6), or leave the cell empty")

    def text(self, name: str) -> np.ndarray:
        """A column as text, numbers in their shortest form."""
        column = self.columns[name]
        return column if column.dtype.kind == "U" else np.array([f"{value:.12g}" for value in column])

    def select(self, keep: np.ndarray) -> "Table":
        """The rows where `keep` is true, or those at the indices `keep`."""
        columns = {name: column[keep] for name, column in self.columns.items()}
        return dataclasses.replace(self, columns=columns, conventions=dict(self.conventions))

    def adding(self, **columns: np.ndarray) -> "Table":
        """A copy with more columns."""
        kept = {name: cell for name, cell in self.no_number.items() if name not in columns}
        return Table({**self.columns, **columns}, dict(self.conventions), list(self.warnings), kept)

    def latest_of_each_run(self) -> "Table":
        """What a sweep wrote (it states `status`): the last row of a run replaces the earlier ones. Others: all rows.

        Either is said in a warning. Rows that --where would leave out must have gone before.
        """
        if "run_id" not in self.columns:
            return self
        last = last_rows([self.columns[name] for name in ("run_id", "study") if name in self.columns])
        n_more = self.n_rows - len(last)
        if not n_more:
            return self
        ours = "study" in self.columns and "status" in self.columns
        what = "replaced by a later row of it" if ours else "all are fitted: keep one of each with --where"
        said = [*self.warnings, f"{n_more} rows have the run_id of another row; {what}"]
        return dataclasses.replace(self.select(last) if ours else self, warnings=said)

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
            for name in (part.strip() for part in re.split(r"[*/]", expression) if ours in OTHER_NAMES):
                if name in self.no_number:
                    raise self.unreadable(name)
            table = table.adding(**{ours: product_of(self.columns, expression)})
            if expression != ours:
                table.conventions[ours] = f"= {expression}"
        return table

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
    files = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    return Table._of_columns(read_columns(files))
