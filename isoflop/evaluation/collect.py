"""What a model says to items: log-probabilities of options and texts, written answers, verdicts on programs.

Each answer is a JSON object of its own and goes into one append-only file per task (`Answers`), so work that was killed
goes on with the items that have none. Answers are kept raw: `grade.py` makes scores of them.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isoflop.errors import DataError, RecipeError
from isoflop.evaluation.likelihood import fit, score
from isoflop.evaluation.prompts import Prompts
from isoflop.evaluation.recipe import GenerationSection
from isoflop.evaluation.tasks.answers import cut
from isoflop.evaluation.tasks.task import Choice, Item, Passage, Question, Task
from isoflop.model.transformer import Transformer
from isoflop.recipe import NotNegativeInt, PositiveInt, check_range
from isoflop.run import read_json_lines
from isoflop.sandbox.jobs import Verdict
from isoflop.sandbox.sandbox import Sandbox
from isoflop.serving.engine import Engine
from isoflop.serving.options import Completion
from isoflop.serving.request import Sampling

Answer = dict[str, Any]
AT_ONCE = 1024
"""Items whose options are scored together: they can share beginnings (assumption)."""
WRITTEN_TOGETHER = 64
"""Answers of a write: so many are computed again after a kill (assumption)."""


WAY_OUT = "repair or remove that line, or delete the file to ask again"


@dataclass(frozen=True)
class Stored:
    """What a line of a file of answers may hold; a later line of an item adds to an earlier one."""

    item: NotNegativeInt = 0
    n_cut: NotNegativeInt = 0
    problem: str = ""
    nats: tuple[float, ...] = ()
    nats_tokens: tuple[PositiveInt, ...] = ()
    is_greedy: tuple[bool, ...] = ()
    whole_text: tuple[float, ...] = ()
    whole_text_tokens: tuple[PositiveInt, ...] = ()
    unconditional: tuple[float, ...] = ()
    unconditional_tokens: tuple[PositiveInt, ...] = ()
    outputs: tuple[str, ...] = ()
    n_tokens: tuple[NotNegativeInt, ...] = ()
    verdicts: tuple[tuple[str, str], ...] = ()
    turns: tuple[str, ...] = ()


@dataclass
class Answers:
    """Answers of one task by the number of the item, on disk as they come."""

    path: Path
    known: dict[int, Answer] = field(default_factory=dict)
    places: dict[int, str] = field(default_factory=dict)
    """Of those that were on disk: file and line."""

    @classmethod
    def open(cls, path: Path) -> "Answers":
        """Read what is there; a line that a killed writer left unfinished is cut off.

        Raises:
            DataError: a line that is no JSON, or has a key or a type that no answer has.
        """
        found = cls(path)
        if path.is_file():
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
            lines = path.read_bytes().split(b"\n")
            numbers = (number for number, line in enumerate(lines, 1) if line.strip())
            for number, row in zip(numbers, read_json_lines(path), strict=True):
                place = f"{path} line {number}"
                if "item" not in row:
                    raise DataError(f"{place}: item is missing; {WAY_OUT}")
                try:
                    check_range(row, Stored, f"{place}: ")
                except RecipeError as error:
                    raise DataError(f"{error}; {WAY_OUT}") from error
                found._take(row)
                found.places[row["item"]] = place
        return found

    def require(self, number: int, sizes: Mapping[str, int]) -> None:
        """Raises DataError where an answer lacks one of these lists, or has another number of values in it; 0: any."""
        answer, place = self.known[number], self.places.get(number, self.path)
        for name, size in sizes.items():
            if name not in answer:
                raise DataError(f"{place}: {name} is missing; {WAY_OUT}")
            if size and len(answer[name]) != size:
                raise DataError(f"{place}: {name} has {len(answer[name])} values and must have {size}; {WAY_OUT}")

    def add(self, rows: Iterable[Answer]) -> None:
        """Write answers in one go and flush them to the disk."""
        rows = list(rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row, ensure_ascii=True, allow_nan=False) + "\n" for row in rows)
        with self.path.open("ab") as file:
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())
        for row in rows:
            self._take(row)

    def _take(self, row: Answer) -> None:
        self.known.setdefault(row["item"], {}).update(row)


def stored_sizes(
    item: Item, answer: Answer, *, n_samples: int, whole_text: bool = False, unconditional: bool = False
) -> dict[str, int]:
    """What the stored answer to an item must hold, with the number of values; 0: any."""
    if "problem" in answer:
        return {"n_cut": 0}
    if isinstance(item, Question):
        return {"n_cut": 0, **dict.fromkeys({"outputs", *({"verdicts"} & answer.keys())}, n_samples)}
    if isinstance(item, Passage):
        return {"n_cut": 0, "nats": 0}
    names = ["nats", "nats_tokens", "is_greedy"]
    names += ["whole_text", "whole_text_tokens"] * whole_text + ["unconditional"] * unconditional
    return {"n_cut": 0} | dict.fromkeys(names, len(item.options))


def score_items(
    model: Transformer,
    prompts: Prompts,
    items: Sequence[tuple[int, Choice | Passage]],
    *,
    whole_text: bool = False,
    unconditional: bool = False,
    budget: int = 0,
) -> Iterator[Answer]:
    """Log-probabilities, in nats, of the options of a `Choice` given its context, and of a `Passage`.

    `nats`, `nats_tokens` and `is_greedy` have one value an option, or a window of the text; `whole_text` adds those of
    context and option together, `unconditional` those of an option behind begin of text alone. An item that cannot be
    scored says so under `problem`.
    """
    seq_len = model.config.seq_len
    for first in range(0, len(items), AT_ONCE):
        some = items[first : first + AT_ONCE]
        asked, owners = [], []
        answers: dict[int, Answer] = {}
        missing: dict[int, int] = {}
        for number, item, wanted in _wanted(prompts, some, seq_len, whole_text, unconditional):
            answer = answers[number] = {"item": number, "n_cut": 0}
            empty = [at for _, at, _, rest in wanted if not rest]
            if isinstance(item, Choice):  # a blank alone is no option either: it has no length
                empty += [at for at, option in enumerate(item.options) if not option.strip()]
            if not wanted or empty:
                what = f"option {empty[0] + 1}" if isinstance(item, Choice) else "the text"
                yield {**answer, "problem": f"{what} has no tokens"}
                continue
            missing[number] = len(wanted)
            for name, at, context, rest in wanted:
                sequence, n_cut = fit(context, rest, seq_len)
                answer["n_cut"] += n_cut if name == "nats" else 0
                size = len([one for one in wanted if one[0] == name])
                for key in (name, f"{name}_tokens"):
                    answer.setdefault(key, [0] * size)
                answer.setdefault("is_greedy", [False] * size)
                answer[f"{name}_tokens"][at] = sequence.n_scored
                asked.append(sequence)
                owners.append((number, name, at))
        for found in score(model, asked, budget=budget):
            number, name, at = owners[found.number]
            answer = answers[number]
            answer[name][at] = found.nats
            if name == "nats":
                answer["is_greedy"][at] = found.is_greedy
            missing[number] -= 1
            if not missing[number]:
                finite = all(math.isfinite(x) for key in KINDS if key in answer for x in answer[key])
                bad = {"item": number, "n_cut": 0, "problem": "a log-probability is not finite"}
                yield answer if finite else bad


KINDS = ("nats", "whole_text", "unconditional")


def _wanted(prompts: Prompts, some: Sequence[tuple[int, Choice | Passage]], seq_len: int, whole: bool, alone: bool):
    """(number, item, [(kind, option, context, what is scored)]) of each item."""
    choices = [(number, item) for number, item in some if isinstance(item, Choice)]
    texts = [pair for _, item in choices for pair in option_texts(item)]
    pairs = iter(prompts.pairs(texts))
    lonely = iter(prompts.pairs([("", rest) for _, rest in texts]) if alone else ())
    for number, item in choices:
        wanted = []
        for at in range(len(item.options)):
            context, rest = next(pairs)
            wanted.append(("nats", at, context, rest))
            if whole:
                wanted.append(("whole_text", at, context[:1], [*context[1:], *rest]))
            if alone:
                wanted.append(("unconditional", at, *next(lonely)))
        yield number, item, wanted
    for number, item in some:
        if isinstance(item, Passage):
            parts = list(prompts.windows(item.text, seq_len))
            yield number, item, [("nats", at, *part) for at, part in enumerate(parts)]


def option_texts(item: Choice) -> list[tuple[str, str]]:
    """(context, option) as they are shown."""
    contexts = item.contexts or (item.context,) * len(item.options)
    return [(item.prefix + context, option) for context, option in zip(contexts, item.options, strict=True)]


def write_answers(
    engine: Engine, prompts: Prompts, items: Sequence[tuple[int, Question]], section: GenerationSection, name: str
) -> Iterator[Answer]:
    """Written answers, each item as soon as all of its samples are there."""
    seq_len, asked, owners = engine.model.config.seq_len, [], []
    answers: dict[int, Answer] = {}
    for number, item in items:
        try:
            ids, n = prompts.prompt(item.prefix + item.prompt), section.max_tokens or item.max_tokens
        except DataError as error:  # such as a question without text, in a chat layout
            yield {"item": number, "n_cut": 0, "problem": str(error)}
            continue
        kept, n = room(ids, n, seq_len)
        k = section.n_samples
        answers[number] = {"item": number, "n_cut": len(ids) - len(kept), "outputs": [None] * k, "n_tokens": [0] * k}
        for at in range(k):
            seed = hashlib.sha256(f"{section.seed}/{name}/{number}/{at}".encode()).digest()
            sampling = Sampling(
                max_tokens=n,
                temperature=section.temperature,
                top_p=section.top_p,
                seed=int.from_bytes(seed[:8], "big"),
                stop=item.stops,
                stop_ids=prompts.template.stop_ids if prompts.template else (),
            )
            asked.append((kept, sampling))
            owners.append((number, at))
    for place, done in complete(engine, asked):
        number, at = owners[place]
        answer = answers[number]
        answer["n_tokens"][at] = len(done.ids)
        if done.finish_reason == "error":
            answer["problem"] = "a logit is not finite"
        answer["outputs"][at] = cut(prompts.said(done.ids), asked[place][1].stop)
        if None not in answer["outputs"]:
            yield answer


def room(ids: list[int], n: int, seq_len: int) -> tuple[list[int], int]:
    """A prompt cut from the left to leave room for `n` tokens, as in lm-eval, and how long the answer may be.

    Where the longest answer alone would fill the context, it gets half of it.
    """
    n = n if n < seq_len else max(1, seq_len // 2)
    return ids[max(0, len(ids) - (seq_len - n)) :], n


def complete(engine: Engine, asked: Sequence[tuple[Sequence[int], Sampling]]) -> Iterator[tuple[int, Completion]]:
    """(place among those asked, what was written), in the order in which they end."""
    running: dict[int, tuple[int, Completion]] = {}
    n_added = 0
    while n_added < len(asked) or not engine.is_finished():
        while n_added < len(asked) and len(engine.scheduler.waiting) < engine.options.max_rows:
            ids, sampling = asked[n_added]
            running[engine.add(ids, sampling)] = (n_added, Completion([*ids]))
            n_added += 1
        for output in engine.step():
            place, done = running[output.number]
            done.extend(output)
            if output.finish_reason:
                del running[output.number]
                yield place, done


def judge(task: Task, items: dict[int, Question], answers: Answers, sandbox: Sandbox) -> Iterator[Answer]:
    """Verdicts on programs that have none yet: `verdicts` has one verdict and reason a sample."""
    assert task.job is not None
    waiting = [n for n in items if "outputs" in answers.known.get(n, {}) and "verdicts" not in answers.known[n]]
    for first in range(0, len(waiting), WRITTEN_TOGETHER):
        some = waiting[first : first + WRITTEN_TOGETHER]
        outputs = [(number, text) for number in some for text in answers.known[number]["outputs"]]
        outcomes = sandbox.run_all([task.job(items[number], text) for number, text in outputs])
        by_item: dict[int, list[list[str]]] = {}
        for (number, _), outcome in zip(outputs, outcomes, strict=True):
            by_item.setdefault(number, []).append([str(outcome.verdict), outcome.detail])
        for number, verdicts in by_item.items():
            if not any(verdict == Verdict.REFUSED for verdict, _ in verdicts):  # says nothing about the answer
                yield {"item": number, "verdicts": verdicts}


def keep(answers: Answers, found: Iterator[Answer], on_answer: Callable[[], None]) -> None:
    """Store answers as they come, some together; `on_answer` may raise to stop, and loses nothing."""
    rows: list[Answer] = []
    try:
        for row in found:
            rows.append(row)
            if len(rows) >= WRITTEN_TOGETHER:
                answers.add(rows)
                rows = []
            on_answer()
    finally:
        if rows:
            answers.add(rows)
