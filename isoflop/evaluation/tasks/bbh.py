"""BIG-Bench Hard: 27 tasks, three worked examples with their reasoning, text after "the answer is" counts."""

import json
import re
from pathlib import Path

from isoflop.errors import DataError
from isoflop.evaluation.tasks.answers import cut
from isoflop.evaluation.tasks.files import members
from isoflop.evaluation.tasks.task import Loaded, Question, Task, load, short

STOPS = ("</s>", "Q", "\n\n")


def read(folder: Path, n_shots: int) -> Loaded:
    shown = {path.stem: text for path, text in members(folder / "bbh", "bbh.tar.gz", "cot-prompts", ".txt")}
    parts = []
    for path, text in members(folder / "bbh", "bbh.tar.gz", "bbh", ".json"):
        try:
            rows = json.loads(text)["examples"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} has no list of examples ({error}); fetch it again") from error
        prefix = _prefix(path, shown.get(path.stem, ""), n_shots)
        part = load(
            ((f"{path}: example {i}", row) for i, row in enumerate(rows)),
            lambda where, row, path=path, prefix=prefix: [
                Question(
                    id=short(where),
                    prompt=f"Q: {row['input']}\nA: Let's think step by step.\n",
                    gold=row["target"],
                    stops=STOPS,
                    max_tokens=1024,
                    prefix=prefix,
                    group=path.stem,
                )
            ],
        )
        parts.append(part)
    return Loaded.joined(parts)


def _prefix(path: Path, text: str, n_shots: int) -> str:
    """The file's header and its first worked examples; the mark against training on it is left out."""
    body = text.partition("-----\n")[2] or text
    header, *examples = re.split(r"\n\n(?=Q: )", body.strip())
    if len(examples) < n_shots:
        raise DataError(
            f"{path}: {len(examples)} worked examples of {n_shots}; fetch cot-prompts/{path.stem}.txt again"
        )
    return "".join(f"{part.strip()}\n\n" for part in (header, *examples[:n_shots]))


def extract(output: str) -> str:
    """What follows the first "the answer is ", to the end of its line less one character (the full stop)."""
    found = re.search(r"(?<=the answer is )(.*)(?=.)", cut(output, STOPS))
    return found[1] if found else "[invalid]"


def grade(question: Question, output: str) -> dict[str, float]:
    return {"exact_match": float(extract(output) == question.gold)}


TASK = Task(
    name="bbh",
    read=read,
    metrics=("exact_match",),
    source="bbh/bbh.tar.gz",
    lm_eval="bbh_cot_fewshot 4.0",
    n_shots=3,
    grade=grade,
)
