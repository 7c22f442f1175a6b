"""MATH: competition problems. The answer is the last box, or the sentence that lm-eval's worked examples teach.

Worked examples are taken from an installed lm-eval (read as text, never imported); without it they are the first
problems of the file, which are then not asked. `Loaded.note` says which.
"""

import ast
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from isoflop.evaluation.tasks.answers import cut, last_box, number
from isoflop.evaluation.tasks.files import find, json_lines
from isoflop.evaluation.tasks.task import Loaded, Question, Task, load, short

STOPS = ("Problem:",)
_SENTENCE = re.compile(r"Final Answer: The final answer is(.*?)\. I hope it is correct", re.DOTALL)


def read(folder: Path, n_shots: int) -> Loaded:
    found = load(json_lines(find(folder / "math", "test.jsonl", "math500_test.jsonl")), _make)
    examples, note, asked = _examples() if n_shots else [], "worked examples of lm-eval", found.items
    if n_shots and not examples:
        rows = [row for _, row in json_lines(find(folder / "math", "test.jsonl", "math500_test.jsonl"))][:n_shots]
        examples, asked = [(row["problem"], row["solution"]) for row in rows], found.items[n_shots:]
        note = "worked examples are the first problems of the file, which are not asked; lm-eval is not installed"
    prefix = "".join(f"{_prompt(problem)} {solution}\n\n" for problem, solution in examples[:n_shots])
    return Loaded(asked, found.skipped, note if n_shots else "").behind(prefix)


def _prompt(problem: str) -> str:
    return f"Problem:\n{problem}\n\nSolution:"


def _make(where: str, row: dict[str, Any]) -> Iterator[Question]:
    gold = last_box(row["solution"])
    if gold is None:
        raise ValueError("the solution has no box")
    yield Question(
        short(where), _prompt(row["problem"]), gold, STOPS, 1024, group=row.get("type", row.get("subject", ""))
    )


def _examples() -> list[tuple[str, str]]:
    """(problem, solution) of lm-eval's worked examples; nothing where it is not installed."""
    spec = find_spec("lm_eval")
    path = Path(spec.origin).parent / "tasks/minerva_math/utils.py" if spec and spec.origin else None
    if path is None or not path.is_file():
        return []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == "list_fewshot_samples":
            returned = node.body[-1]
            assert isinstance(returned, ast.Return) and returned.value is not None
            return [(e["problem"], e["solution"]) for e in ast.literal_eval(returned.value)]
    return []


def extract(output: str) -> str:
    """The answer that an output gives: its last box, else its sentence."""
    output = cut(output, STOPS)
    box = last_box(output)
    if box is not None:
        return box
    found = _SENTENCE.search(output + " I hope it is correct")
    return found[1].strip().strip("$") if found else ""


def equal(gold: str, answer: str) -> bool:
    """Same text after normalising LaTeX, or the same rational number."""
    first, second = normal_latex(gold), normal_latex(answer)
    if first == second:
        return first != ""
    numbers = number(first), number(second)
    return None not in numbers and numbers[0] == numbers[1]


def normal_latex(text: str) -> str:
    """One spelling for what looks the same: sizes, spaces, units, fractions, text."""
    text = text.strip().strip("$").replace("\n", "")
    for old, new in (("\\left", ""), ("\\right", ""), ("\\!", ""), ("\\,", ""), ("\\;", ""), ("\\ ", ""), ("\\$", "")):
        text = text.replace(old, new)
    text = text.replace("tfrac", "frac").replace("dfrac", "frac").replace("^{\\circ}", "").replace("^\\circ", "")
    text = re.sub(r"\\(?:text|textbf|mathrm|mbox)\{([^{}]*)\}", r" \1", text)
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\{([^{}]*)\}(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text)
    if re.fullmatch(r"\s*-?\d{1,3}(,\d{3})+(\.\d+)?\s*", text):
        text = text.replace(",", "")
    units = (
        r"(?<=[\d\s])(?:degrees?|units?|square|cubic|inches|feet|cm|meters|dollars|cents|hours|minutes|ways|points)\b"
    )
    text = re.sub(units, "", text)
    text = re.sub(r"^[a-zA-Z]\s*=\s*", "", text.strip())
    return re.sub(r"\s+", "", text).rstrip(".").removesuffix("\\%").removesuffix("%")


def grade(question: Question, output: str) -> dict[str, float]:
    return {"exact_match": float(equal(question.gold, extract(output)))}


TASK = Task(
    name="math",
    read=read,
    metrics=("exact_match",),
    source="math/test.jsonl, math/math500_test.jsonl",
    form="prompt and worked examples of lm-eval's minerva_math 3.1 where it is installed; graded by text and rationals",
    n_shots=4,
    grade=grade,
)
