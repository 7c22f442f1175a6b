"""The reference solutions of HumanEval and MBPP pass in the sandbox, and changed ones fail."""

import ast
import json
import sys
from dataclasses import replace

import pytest
from places import SHARED

from isoflop.errors import SandboxError
from isoflop.evaluation.tasks.catalogue import run_programs, task
from isoflop.evaluation.tasks.files import read_text
from isoflop.evaluation.tasks.leetcode import extract
from isoflop.evaluation.tasks.mbpp import TASK as MBPP
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
    found = run_programs(task(name), questions, outputs, sandbox)
    wrong = [(q.id, outcome) for q, (score, outcome) in zip(questions, found) if score != {task(name).metrics[0]: 1.0}]
    assert wrong == []


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
        found = run_programs(task(name), items, ["    pass\n"] * len(items), sandbox)
        assert [score for score, _ in found] == [{task(name).metrics[0]: 0.0}] * len(items)


def test_a_helper_of_the_prompt_cannot_be_replaced(sandbox):
    """HumanEval/32 checks roots with the prompt's own polynomial: an answer that redefines it must not pass."""
    (question,) = (q for q in task("humaneval").read(EVAL, 0).items if q.id == "HumanEval/32")
    assert isinstance(question, Question)
    cheat = "    global poly\n    poly = lambda *a: 0.0\n    return 0.5\n"
    ((score, _),) = run_programs(task("humaneval"), [question], [cheat], sandbox)
    assert score == {"pass@1": 0.0}


def test_leetcode_takes_the_last_block_of_code_and_runs_its_methods(sandbox):
    items = [item for item in task("leetcode").read(EVAL, 0).items if isinstance(item, Question)]
    (question,) = (
        q for q in items if q.id.removeprefix("weekly-contest-381-") == "minimum-number-of-pushes-to-type-word-i"
    )
    code = "class Solution:\n    def minimumPushes(self, word: str) -> int:\n        n = len(word)\n"
    code += "        return sum((i // 8 + 1) for i in range(n))\n"
    output = f"First\n```python\nx = 1\n```\nthen\n```python\n{code}```\nDone."
    assert extract(output) == code and extract(code) == code
    ((score, outcome),) = run_programs(task("leetcode"), [question], [output], sandbox)
    assert score == {"pass@1": 1.0}, outcome
    ((score, _),) = run_programs(task("leetcode"), [question], [output.replace("// 8 + 1", "// 8")], sandbox)
    assert score == {"pass@1": 0.0}


def test_programs_are_not_graded_where_the_sandbox_does_not_hold(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with Sandbox() as closed, pytest.raises(SandboxError, match="the sandbox cannot hold here"):
        run_programs(MBPP, [], [], closed)
