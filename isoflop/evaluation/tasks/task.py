"""What a benchmark is, as plain data: items read from official files, and functions that grade outputs.

Three kinds of items. A `Choice` is answered by likelihood: the scorer gets a context and options, and gives back
one number per option. A `Question` is answered by generation: a prompt, where to stop, and a grader. A `Passage` is a
text to be predicted. None of them knows a model. What many items share (header and worked examples) is `prefix`, kept
apart so that it can be computed once; the text shown is `prefix + context`, or `prefix + prompt`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from isoflop.corpus.filter.decontaminate import strings_of
from isoflop.corpus.read.encoding import is_encodable
from isoflop.errors import DataError
from isoflop.sandbox.jobs import Job

MOST_BAD = 0.1  # assumption: with more rows that cannot be read, it is another file than the one expected


@dataclass(frozen=True)
class Choice:
    """One text of several is right."""

    id: str
    context: str
    options: tuple[str, ...]
    """Continuations of the context, each with its leading blank where the form has one."""
    gold: tuple[int, ...]
    """Index of the right option; of several, where any of them counts."""
    contexts: tuple[str, ...] = ()
    """Where options differ in what comes before: one context per option, and `context` is empty."""
    prefix: str = ""
    group: str = ""
    """Passage, dialogue or subject: items of one group are not independent."""
    texts: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """All strings of its row in the official file: what training text may have in common with it."""


@dataclass(frozen=True)
class Question:
    """A text is to be written."""

    id: str
    prompt: str
    gold: Any
    """What the task's grader needs."""
    stops: tuple[str, ...] = ()
    max_tokens: int = 256
    prefix: str = ""
    group: str = ""
    texts: tuple[str, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class Passage:
    """A text whose every token counts, after BOS alone; its score is per byte of the text."""

    id: str
    text: str
    group: str = ""
    texts: tuple[str, ...] = field(default=(), compare=False, repr=False)


Item = Choice | Question | Passage
Row = tuple[str, Any]
"""Where a row stands (`file:line`), and the row."""


@dataclass(frozen=True)
class Loaded:
    """Items of a task; rows that could not be used are named."""

    items: list[Item]
    skipped: list[str] = field(default_factory=list)
    note: str = ""
    """What depends on the machine, such as where worked examples came from."""

    def behind(self, prefix: str) -> "Loaded":
        """The same items, each behind a header or worked examples."""
        return replace(self, items=[replace(item, prefix=prefix) for item in self.items])

    @classmethod
    def joined(cls, parts: Iterable["Loaded"]) -> "Loaded":
        """Of several files."""
        parts = list(parts)
        return cls([item for part in parts for item in part.items], [row for part in parts for row in part.skipped])


@dataclass(frozen=True)
class Task:
    """One benchmark."""

    name: str
    read: Callable[[Path, int], Loaded]
    """Items from the data folder, with this many worked examples."""
    metrics: tuple[str, ...]
    source: str
    """Official files, below the data folder."""
    lm_eval: str = ""
    """Task of lm-eval 0.4.13, with version, whose scores compare one to one; empty where the form is ours."""
    form: str = ""
    """What is ours in it."""
    n_shots: int = 0
    grade: Callable[[Question, str], Mapping[str, float]] | None = None
    weigh: Callable[[Question, str], float] | None = None
    """Weight of an item in the mean of a metric; 1 where this is absent."""
    job: Callable[[Question, str], Job] | None = None
    """For outputs that are programs: what the sandbox is asked; the metric is 1 where it passes."""


def load(rows: Iterable[Row], make: Callable[[str, Any], Iterable[Item]]) -> Loaded:
    """Items of all rows; a row that `make` cannot use is skipped and named.

    Raises:
        DataError: more than a tenth of the rows, or all of them: another file, or another version of it.
    """
    items: list[Item] = []
    skipped, n_rows = [], 0
    for where, row in rows:
        n_rows += 1
        texts = tuple(dict.fromkeys(strings_of(row)))
        if not all(map(is_encodable, texts)):
            skipped.append(f"{where}: unpaired surrogates, which no tokenizer takes")
            continue
        try:
            for item in make(where, row):
                items.append(replace(item, texts=texts))
        except KeyError as error:
            skipped.append(f"{where}: field {error} is missing")
        except (ValueError, TypeError, IndexError) as error:
            skipped.append(f"{where}: {str(error)[:200]}")
    if not items or len(skipped) > MOST_BAD * n_rows:
        first = f"; first: {skipped[0]}" if skipped else ""
        said = f"{len(skipped)} of {n_rows} rows cannot be used{first}" if n_rows else "its files hold no row"
        raise DataError(f"{said}; give the official file, or another version of it")
    return Loaded(items, skipped)


def short(where: str) -> str:
    """Name of a row that is the same on every machine: file and line without the folder."""
    return where.rpartition("/")[2]


def index_of(gold: Any, n: int) -> tuple[int, ...]:
    """A right option by number or by letter.

    Raises:
        ValueError: there is no such option.
    """
    number = "ABCDEFGHIJ".find(gold.strip()) if isinstance(gold, str) and gold.strip() else gold
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < n:
        raise ValueError(f"the answer {gold!r} is none of {n} options")
    return (number,)


def shots(items: Iterable[Item], *, header: str) -> str:
    """The prefix that shows items with their answers, as lm-eval joins them."""
    shown = [f"{item.context}{item.options[item.gold[0]]}\n\n" for item in items if isinstance(item, Choice)]
    return header + "".join(shown)
