"""Conversations for the demo from what every machine has: docstrings of its Python environment, one-step arithmetic.

    What does this function do?  def clamp(x, low, high)     ->  Limit x to the range from low to high.
    What is 34 + 51?                                         ->  The result of 34 + 51 is 85.

Docstrings are split by package, problems by their two numbers, so that nothing held out was trained on; the same seed
gives the same sets. The rule that judges an answer: it has the right result where there is one, stops, and does not
loop.
"""

import ast
import hashlib
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from isoflop.corpus.document import BadRecord
from isoflop.corpus.read.environment import EnvironmentFile, EnvironmentOptions, find_environment_files
from isoflop.corpus.read.sources import decode

VALID_SHARE = 0.1
"""Of packages and of problems that are held out (assumption)."""
LARGEST, SECOND = 99, 19
"""Numbers in a sum (assumption: small models learn most of such sums in minutes, and not all)."""
MAX_SENTENCE, MAX_ARGUMENTS = 140, 5
_SENTENCE = re.compile(rf"[A-Z][^\n]{{8,{MAX_SENTENCE}}}?\.(?=\s|$)")
_NUMBER = re.compile(r"-?\d+")
_RESULT = re.compile(r" is (-?\d+)\.$")
_ASK_FUNCTION = (
    "What does this function do?\n{}",
    "Describe this function.\n{}",
    "{}\nSay in one sentence what it does.",
)
_ASK_SUM = ("What is {}?", "Calculate {}.", "{} = ?")


class Talk(NamedTuple):
    """One question and its answer."""

    question: str
    answer: str
    kind: str
    """arithmetic or docstring."""

    def record(self) -> dict[str, object]:
        """As the readers take it."""
        turns = [{"role": "user", "content": self.question}, {"role": "assistant", "content": self.answer}]
        return {"messages": turns, "kind": self.kind}


def arithmetic(n: int, seed: int, *, valid: bool) -> list[Talk]:
    """`n` different questions for sums and differences, of the held-out problems or of the others.

    A problem is asked in several ways, and all of them are on one side.
    """
    asked = [
        (a, sign, b, form)
        for sign in "+-"
        for a in range(LARGEST + 1)
        for b in range(SECOND + 1)
        if (sign == "+" or a >= b) and (_share(f"{a}{sign}{b}") < VALID_SHARE) == valid
        for form in _ASK_SUM
    ]
    found = []
    for index in np.random.Generator(np.random.Philox([seed, int(valid)])).permutation(len(asked))[:n]:
        a, sign, b, form = asked[index]
        text, result = f"{a} {sign} {b}", a + b if sign == "+" else a - b
        found.append(Talk(form.format(text), f"The result of {text} is {result}.", "arithmetic"))
    return found


def docstrings(n: int, seed: int, options: EnvironmentOptions, *, valid: bool) -> list[Talk]:
    """`n` signatures and what their docstrings say first, from held-out packages or from the others."""
    found: dict[str, Talk] = {}
    generator = np.random.Generator(np.random.Philox([seed, 2 + int(valid)]))
    for file in find_environment_files(options):
        if file.kind == "python" and (_share(file.package) < VALID_SHARE) == valid:
            for signature, sentence in _described(file):
                form = _ASK_FUNCTION[generator.integers(0, len(_ASK_FUNCTION))]
                found.setdefault(signature, Talk(form.format(signature), sentence, "docstring"))
    talks = list(found.values())
    return [talks[index] for index in generator.permutation(len(talks))[:n]]


def right_result(expected: str, answer: str) -> bool | None:
    """Whether the last number of an answer is the one that a sum should have; None where nothing is to be summed."""
    wanted = _RESULT.search(expected)
    if wanted is None:
        return None
    given = _NUMBER.findall(answer)
    return bool(given) and given[-1] == wanted[1]


def judge(expected: str, answer: str, stopped: bool, repeated: bool) -> bool:
    """The rule: right result, stops, does not repeat."""
    return stopped and not repeated and bool(answer.strip()) and right_result(expected, answer) is not False


def interleaved(*parts: Sequence[Talk], seed: int) -> list[Talk]:
    """All of them in one random order."""
    talks = [talk for part in parts for talk in part]
    order = np.random.Generator(np.random.Philox([seed, 9])).permutation(len(talks))
    return [talks[index] for index in order]


def _described(file: EnvironmentFile) -> Iterator[tuple[str, str]]:
    bad: list[BadRecord] = []
    text = decode(file.path.read_bytes(), file.id, bad.append)
    if text is None:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in other people's strings
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        arguments = [argument.arg for argument in node.args.args if argument.arg not in ("self", "cls")]
        said = _SENTENCE.match(ast.get_docstring(node) or "")
        if said and len(arguments) <= MAX_ARGUMENTS and said[0].isascii():
            yield f"def {node.name}({', '.join(arguments)})", said[0]


def _share(text: str) -> float:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
