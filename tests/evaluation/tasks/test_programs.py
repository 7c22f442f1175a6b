"""The reference solutions of HumanEval and MBPP pass in the sandbox, and changed ones fail."""

import ast
import json
import sys
from dataclasses import replace

import pytest
from places import SHARED

from isoflop.evaluation.tasks.catalogue import task
from isoflop.evaluation.tasks.files import read_text
from isoflop.evaluation.tasks.leetcode import extract
from isoflop.evaluation.tasks.task import Question
from isoflop.sandbox.sandbox import Sandbox

EVAL = SHARED / "eval"
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the sandbox holds on Linux only"),
    pytest.mark.skipif(not EVAL.is_dir(), reason="official files lie beside the checkout"),
]


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(n_workers=2) as opened:
        opened.require()
        yield opened


def run(name, sandbox, questions, outputs):
    """How each output ends."""
    return sandbox.run_all([task(name).job(q, output) for q, output in zip(questions, outputs, strict=True)])  # type: ignore[misc]


def solutions(name):
    """(question, reference output) of every item."""
    items = [item for item in task(name).read(EVAL, 0).items if isinstance(item, Question)]
    if name == "mbpp":
        return [(item, item.gold["code"]) for item in items]
    text = read_text(EVAL / "humaneval/HumanEval.jsonl.gz")
    rows = {row["task_id"]: row for row in map(json.loads, text.splitlines())}
    return [(item, rows[item.id]["canonical_solution"]) for item in items]


class _Wrong(ast.NodeTransformer):
    """Every returned value is wrapped into a list of two."""

    def visit_Return(self, node: ast.Return) -> ast.Return:
        value = node.value or ast.Constant(None)
        return ast.copy_location(ast.Return(ast.List([value, ast.Constant("wrong")], ast.Load())), node)


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_reference_solutions_pass(name, sandbox):
    questions, outputs = zip(*solutions(name))
    found = run(name, sandbox, questions, outputs)
    assert [(q.id, outcome) for q, outcome in zip(questions, found) if outcome.verdict != "passed"] == []


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_changed_solutions_fail(name, sandbox):
    jobs, names = [], []
    for question, output in solutions(name):
        whole = question.prompt + output if name == "humaneval" else output
        changed = ast.unparse(_Wrong().visit(ast.parse(whole)))
        jobs.append(replace(task(name).job(question, output), code=changed))  # type: ignore[misc]
        names.append(question.id)
    passed = [name for name, outcome in zip(names, sandbox.run_all(jobs)) if outcome.verdict == "passed"]
    assert passed == []


def test_empty_answers_fail(sandbox):
    for name in ("humaneval", "mbpp", "leetcode"):
        items = [item for item in task(name).read(EVAL, 0).items if isinstance(item, Question)][:20]
        found = run(name, sandbox, items, ["    pass\n"] * len(items))
        assert not {outcome.verdict for outcome in found} & {"passed", "refused"}


def test_a_helper_of_the_prompt_cannot_be_replaced(sandbox):
    """HumanEval/32 checks roots with the prompt's own polynomial: an answer that redefines it must not pass."""
    (question,) = (q for q in task("humaneval").read(EVAL, 0).items if q.id == "HumanEval/32")
    assert isinstance(question, Question)
    cheat = "    global poly\n    poly = lambda *a: 0.0\n    return 0.5\n"
    (outcome,) = run("humaneval", sandbox, [question], [cheat])
    assert outcome.verdict == "failed"


def test_leetcode_takes_the_last_block_of_code_and_runs_its_methods(sandbox):
    items = [item for item in task("leetcode").read(EVAL, 0).items if isinstance(item, Question)]
    (question,) = (
        q for q in items if q.id.removeprefix("weekly-contest-381-") == "minimum-number-of-pushes-to-type-word-i"
    )
    code = "class Solution:\n    def minimumPushes(self, word: str) -> int:\n        n = len(word)\n"
    code += "        return sum((i // 8 + 1) for i in range(n))\n"
    output = f"First\n```python\nx = 1\n```\nthen\n```python\n{code}```\nDone."
    assert extract(output) == code and extract(code) == code
    found = run("leetcode", sandbox, [question] * 2, [output, output.replace("// 8 + 1", "// 8")])
    assert [outcome.verdict for outcome in found] == ["passed", "failed"], found
