"""AGIEval: exams in English and Chinese. Lettered options by likelihood of the letter, cloze tasks by generation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.evaluation.tasks.answers import cut, last_box
from isoflop.evaluation.tasks.chinese import texts
from isoflop.evaluation.tasks.files import json_lines, members
from isoflop.evaluation.tasks.math import equal
from isoflop.evaluation.tasks.task import Choice, Item, Loaded, Question, Task, index_of, load, short

STOPS = ("\n", "Q:")
CHINESE = ("gaokao-", "jec-qa-", "logiqa-zh")


def read(folder: Path, n_shots: int) -> Loaded:
    files = members(folder / "agieval", "v1.tar.gz", "data/v1", ".jsonl")
    return Loaded.joined(load(json_lines(path, text), _maker(path.stem)) for path, text in files)


def _maker(name: str) -> Any:
    said = texts("agieval")
    chinese = name.startswith(CHINESE) and name != "gaokao-english"

    def make(where: str, row: dict[str, Any]) -> Iterator[Item]:
        passage = f"{row['passage']}\n" if row["passage"] else ""
        asked = f"{passage}{said['question'] if chinese else 'Q: '}{row['question'].strip()}"
        if not row["options"]:
            prompt = f"{asked}\n{said['cloze'] if chinese else 'A: The answer is'}"
            yield Question(short(where), prompt, str(row["answer"]), STOPS, 32, group=name)
            return
        letters = "ABCDEFGHIJ"[: len(row["options"])]
        gold = tuple(i for letter in "".join(row["label"]) for i in index_of(letter, len(letters)))
        if not gold:
            raise ValueError("no option is right")
        listed = " ".join(row["options"])
        if chinese:
            text = f"{asked} {said['choices']}{listed}\n{said['cue'].format(first='A', last=letters[-1])}"
        else:
            text = f"{asked} Answer Choices: {listed}\nA: Among A through {letters[-1]}, the answer is"
        options = tuple(letters if chinese else (f" {letter}" for letter in letters))
        yield Choice(short(where), text, options, gold, group=name)

    return make


def grade(question: Question, output: str) -> dict[str, float]:
    said = cut(output, STOPS)
    return {"acc": float(equal(question.gold, last_box(said) or said.strip().rstrip(".")))}


TASK = Task(
    name="agieval",
    read=read,
    metrics=("acc",),
    source="agieval/v1.tar.gz",
    form="letters by likelihood, no worked examples; where several letters are right, any of them counts",
    grade=grade,
)
