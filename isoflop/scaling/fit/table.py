"""Measurements as named columns: CSV or JSONL of any origin -> the columns the laws are fitted to.

A foreign table keeps its own names; `mapping` adds ours (`n_params=params,batch_tokens=batch_seqs*seq_len`), `where`
keeps rows by either name, and nothing is guessed silently: a missing column is one error that suggests a mapping, a
derived one is stated in `conventions`. Ours are n_params or flops_per_token, n_tokens, total_flops (counted),
budget_flops (planned label), loss_nats or bits_per_byte, learning_rate, batch_tokens, weight; of mixtures of experts
n_params_active, n_experts, n_active, n_shared, d_expert, granularity, activated_share.
"""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from isoflop.columns import (
    OTHER_NAMES,
    Columns,
    columns_of_rows,
    last_rows,
    likely_column,
    pairs_of,
    parts_of,
    product_of,
    read_columns,
    runs_of,
    unit_in,
)
from isoflop.errors import DataError, FitError, did_you_mean
from isoflop.scaling.sweep.records import RunRecord

logger = logging.getLogger(__name__)

LOSSES = ("loss_nats", "bits_per_byte")
COMPUTE = ("total_flops", "budget_flops")
RUN_COLUMNS = ("run_id", "run", "run_name", "Name", "name")
STEP_COLUMNS = ("step", "_step", "global_step", "trainer/global_step", "train/step", "iteration", "iter", "Step")


@dataclasses.dataclass(frozen=True)
class Table:
    """Named columns of equal length, with what was assumed about them and what looks wrong."""

    columns: dict[str, np.ndarray]
    """Numbers (float64, missing as NaN) or text."""
    conventions: dict[str, str] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)
    no_number: dict[str, str] = dataclasses.field(default_factory=dict)
    """Column -> its first cell that is no number, with its place; whoever needs numbers refuses by it."""
    inferences: list[str] = dataclasses.field(default_factory=list)
    """What was read from cells, names and rows that a stricter reader would refuse."""
    places: np.ndarray | None = None
    """Where each row stands, as 'runs.csv line 9'."""

    @classmethod
    def _of_columns(cls, read: Columns) -> "Table":
        return cls(read.values, _stated(read), no_number=read.no_number, inferences=read.notes, places=read.places)

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, object]]) -> "Table":
        """Columns from one mapping per row; keys that a row lacks, None and empty text are missing values."""
        return cls._of_columns(columns_of_rows(rows))

    @classmethod
    def of(cls, runs: object) -> "Table":
        """A table of whatever holds runs: a table, files, records (nested fields left out), or one mapping per run."""
        if isinstance(runs, Table):
            return runs
        rows = runs_of(runs)
        if rows and all(isinstance(row, (str, Path)) for row in rows):
            return read_table(rows)
        return cls.from_rows([row.to_dict() if isinstance(row, RunRecord) else row for row in rows])

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

    def first_of(self, names: Iterable[str]) -> str | None:
        """The first of these columns that is there, as `has` says."""
        return next((name for name in names if self.has(name)), None)

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

    def place(self, row: int) -> str:
        """Where a row stands."""
        return f"row {row + 1}" if self.places is None else str(self.places[row])

    def cell(self, name: str, row: int) -> str:
        """A cell with its column and place, as messages name it."""
        return f"column {name}, {self.place(row)}: {self.text(name)[row]}"

    def text(self, name: str) -> np.ndarray:
        """A column as text, numbers in their shortest form."""
        column = self.columns[name]
        return column if column.dtype.kind == "U" else np.array([f"{value:.12g}" for value in column])

    def select(self, keep: np.ndarray) -> "Table":
        """The rows where `keep` is true, or those at the indices `keep`."""
        columns = {name: column[keep] for name, column in self.columns.items()}
        places = None if self.places is None else self.places[keep]
        return dataclasses.replace(self, columns=columns, conventions=dict(self.conventions), places=places)

    def adding(self, **columns: np.ndarray) -> "Table":
        """A copy with more columns."""
        kept = {name: cell for name, cell in self.no_number.items() if name not in columns}
        columns = self.columns | columns
        return dataclasses.replace(self, columns=columns, conventions=dict(self.conventions), no_number=kept)

    def latest_of_each_run(self) -> "Table":
        """What a sweep wrote (it states `status`): the last row of a run replaces the earlier ones. Others: all rows.

        Rows of one run at several steps are checkpoints, uncooled but for the last: that one stays. All is said. Rows
        that --where would leave out must have gone before.
        """
        table = self._last_checkpoints()
        if "run_id" not in table.columns:
            return table
        last = last_rows([table.columns[name] for name in ("run_id", "study") if name in table.columns])
        n_more = table.n_rows - len(last)
        if not n_more:
            return table
        ours = "study" in table.columns and "status" in table.columns
        what = "replaced by a later row of it" if ours else "all are fitted: keep one of each with --where"
        said = [f"{n_more} rows have the run_id of another row; {what}"]
        if ours:
            return dataclasses.replace(table.select(last), inferences=[*table.inferences, *said])
        return dataclasses.replace(table, warnings=[*table.warnings, *said])

    def _last_checkpoints(self) -> "Table":
        run = next((name for name in RUN_COLUMNS if name in self.columns), None)
        step = self.first_of(STEP_COLUMNS)
        if run is None or step is None or "cooled" in self.columns:
            return self
        names, steps = self.text(run), self.columns[step]
        groups = [np.flatnonzero(names == name) for name in np.unique(names) if name]
        strides = [np.diff(np.unique(steps[rows])) for rows in groups]
        even = [np.isclose(stride[:-1], stride[0]).all() for stride in strides if len(stride) > 1]
        if not even or np.mean(even) < 0.5:  # a ladder of lengths grows by factors, checkpoints come at even steps
            return self
        keep = np.ones(self.n_rows, dtype=bool)
        for rows in groups:
            keep[rows] = ~(steps[rows] < np.nanmax(steps[rows], initial=-np.inf))
        said = (
            f"{int((~keep).sum())} rows left out: checkpoints before the last {step} of their {run} (the first: "
            f"{self.place(int((~keep).argmax()))}), whose rate was still up; --map cooled=1 keeps them"
        )
        return dataclasses.replace(self.select(keep), inferences=[*self.inferences, said])

    def missing(self, names: Sequence[str], law: str) -> FitError:
        """The error for a law that needs `names` (alternatives written as 'a or b')."""
        options = [option for name in names for option in name.split(" or ")]
        more = [name for name in ("n_params", "n_tokens", "loss_nats", "bits_per_byte") if name not in self.columns]
        guesses = {option: likely_column(self.columns, option) for option in dict.fromkeys([*options, *more])}
        pairs = [f"{ours}={theirs}" for ours, theirs in guesses.items() if theirs]
        way = f"try --map '{','.join(pairs)}'" if pairs else "name them with --map ours=theirs"
        return FitError(
            f"{law} needs the column {' and '.join(names)}, absent or empty in the table; "
            f"it has: {', '.join(self.columns) or 'no column'}; {way}"
        )

    def loss(self, law: str, name: str | None = None) -> tuple[str, np.ndarray]:
        """Name and values of the loss column: the one asked for, else nats per token, else bits per byte."""
        if option := self.first_of((name,) if name else LOSSES):
            return option, self.columns[option]
        raise self.missing([name or " or ".join(LOSSES)], law)

    def scale(self, law: str, name: str | None = None) -> tuple[str, np.ndarray]:
        """Name and values of the model scale: n_params, else flops_per_token, else N = C/(6 D)."""
        if option := self.first_of((name,) if name else ("n_params", "flops_per_token")):
            return option, self.columns[option]
        if name in (None, "n_params") and self.has("n_tokens") and self.first_of(COMPUTE):
            self.conventions["n_params"] = "derived: total_flops / (6 n_tokens)"
            return "n_params", self.compute(law)[1] / (6 * self.columns["n_tokens"])
        raise self.missing([name or "n_params or flops_per_token"], law)

    def tokens(self, law: str) -> np.ndarray:
        """Training tokens: n_tokens, else C/M or C/(6 N)."""
        if self.has("n_tokens"):
            return self.columns["n_tokens"]
        if self.first_of(COMPUTE):
            for option, factor, text in (("flops_per_token", 1, "flops_per_token"), ("n_params", 6, "(6 n_params)")):
                if self.has(option):
                    self.conventions["n_tokens"] = f"derived: total_flops / {text}"
                    return self.compute(law)[1] / (factor * self.columns[option])
        raise self.missing(["n_tokens"], law)

    def compute(self, law: str) -> tuple[str, np.ndarray]:
        """Where each row's training FLOPs come from, and their values: counted, else the label, else derived."""
        if option := self.first_of(COMPUTE):
            self.conventions.setdefault("total_flops", f"column {option}")
            return option, self.columns[option]
        for option, factor, text in (("flops_per_token", 1, "flops_per_token x"), ("n_params", 6, "6 x n_params x")):
            if self.has(option, "n_tokens"):
                self.conventions["total_flops"] = f"derived: {text} n_tokens"
                return "derived", factor * self.columns[option] * self.columns["n_tokens"]
        raise self.missing(["total_flops or budget_flops"], law)

    def weights(self) -> np.ndarray:
        """The weight of each row; 1 where no weights were asked for."""
        return self.columns.get("weight", np.ones(self.n_rows))

    def map(self, mapping: str) -> "Table":
        """Add our names: `ours=theirs,...`, where theirs is a column, or a product or quotient of columns and numbers.

        A name that holds a comma stands in double quotes. Perplexity becomes loss_nats.
        """
        table = self
        for pair in pairs_of(mapping):
            ours, equals, expression = (part.strip() for part in pair.partition("="))
            if not equals or not ours or not expression:
                raise FitError(f"--map {pair!r} must read ours=theirs, for example n_params=params")
            if ours not in OTHER_NAMES:
                hint = did_you_mean(ours, OTHER_NAMES, f"known: {', '.join(OTHER_NAMES)}")
                logger.info("--map %s adds a column that no law reads; %s", ours, hint)
            parts = parts_of(self.columns, expression)
            for name in parts if ours in OTHER_NAMES else ():
                if name in self.no_number:
                    raise self.unreadable(name)
            self._check_name(ours, parts)
            table = table.adding(**{ours: product_of(self.columns, expression)})
            if expression != ours:
                table.conventions[ours] = f"= {expression}"
        return table._in_nats()

    def _check_name(self, ours: str, parts: list[str]) -> None:
        """Refuse a loss whose own name states another unit, unless a product converts it."""
        if ours not in (*LOSSES, "perplexity") or len(parts) > 1:
            return
        unit = unit_in(parts[0]) or ours
        if unit != ours:
            way = f"--map {unit}={parts[0]}" if unit in OTHER_NAMES else f"--map loss_nats={parts[0]}*0.693147"
            raise FitError(
                f"--map {ours}={parts[0]}: the name says {unit} ({self.cell(parts[0], 0)}); {way}, or state the "
                f"conversion: {ours}={parts[0]}*1"
            )

    def _in_nats(self) -> "Table":
        """With loss_nats = ln(perplexity) where perplexity is the only loss. Raises DataError: one of 1 or below."""
        if any(name in self.columns for name in LOSSES) or "perplexity" not in self.columns:
            return self
        perplexity = self.numbers("perplexity")
        if (low := perplexity <= 1).any():
            raise DataError(f"{self.cell('perplexity', int(low.argmax()))} must be above 1; repair the row")
        table = self.adding(loss_nats=np.log(perplexity))
        table.conventions.update(loss_nats="= ln(perplexity)", unit="perplexity")
        said = "perplexity is fitted as loss_nats, its logarithm; predictions are perplexities again"
        return dataclasses.replace(table, inferences=[*self.inferences, said])


def read_table(paths: str | Path | Sequence[str | Path]) -> Table:
    """Read files of runs (isoflop.rows) one below the other. Raises DataError: missing, empty, malformed."""
    files = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    return Table._of_columns(read_columns(files))


def _stated(read: Columns) -> dict[str, str]:
    """How runs were counted, as the records of a sweep say: those of the first; its family as the largest run has it.

    A tiny model has one head, which is no GQA yet.
    """
    many = [stated or {} for stated in read.objects.get("conventions", ()) if isinstance(stated or {}, dict)]
    given = dict(next(filter(None, many), {}))
    sizes = read.values.get("flops_per_token")
    if sizes is not None and sizes.dtype.kind == "f" and len(sizes) == len(many):
        given |= {key: value for key, value in many[int(np.nan_to_num(sizes).argmax())].items() if key == "family"}
    tokenizers = {*read.values.get("tokenizer_sha256", np.array([])).tolist()} - {""}
    return given if len(tokenizers) != 1 else {"tokenizer_sha256": tokenizers.pop(), **given}
