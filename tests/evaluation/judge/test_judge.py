"""Judged evaluation against an endpoint that works, is down, slow or talks nonsense: failures are missing, not 0."""

import dataclasses
import json
import time
from pathlib import Path

import pytest
from evaluation_runs import run_of
from fake_judge import fake_judge
from places import SHARED

from isoflop.cli.main import main
from isoflop.errors import DataError, RecipeError
from isoflop.evaluation.judge.questions import harmless, judged, rating, winner
from isoflop.evaluation.judge.recipe import JudgeRecipe, JudgeSection, QuestionsSection, check
from isoflop.evaluation.judge.run import judge

N = 6
PROMPTS = {
    "single-v1": "[Q]{question}[A]{answer}",
    "single-v1-multi-turn": "{question_1}|{answer_1}|{question_2}|{answer_2}",
    "single-math-v1": "[Q]{question}[R]{ref_answer_1}[A]{answer}",
    "single-math-v1-multi-turn": "{question_1}{ref_answer_1}{answer_1}{question_2}{ref_answer_2}{answer_2}",
    "pair-v2": "[Q]{question}[A]{answer_a}[B]{answer_b}",
    "pair-v2-multi-turn": "[Q]{question_2}[A]{answer_a_2}[B]{answer_b_2}",
    "pair-math-v1": "[Q]{question}[R]{ref_answer_1}[A]{answer_a}[B]{answer_b}",
    "pair-math-v1-multi-turn": "[Q]{question_2}[R]{ref_answer_2}[A]{answer_a_2}[B]{answer_b_2}",
}


def lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path):
    """MT-Bench's files, made up; the first question has a reference."""
    folder = tmp_path / "data/mt_bench"
    rows = [{"name": name, "system_prompt": "Judge.", "prompt_template": text} for name, text in PROMPTS.items()]
    lines(folder / "judge_prompts.jsonl", rows)
    names = ["math", *["writing"] * (N - 1)]
    questions = [{"question_id": n, "category": c, "turns": [f"ask {n}?", f"more {n}?"]} for n, c in enumerate(names)]
    lines(folder / "question.jsonl", questions)
    reference = {"question_id": 0, "choices": [{"turns": ["gold one", "gold two"]}]}
    lines(folder / "reference_answer/gpt-4.jsonl", [reference])
    return tmp_path / "data"


def answers(path: Path, said: str) -> str:
    rows = [{"question_id": n, "choices": [{"turns": [f"{said} {n}", f"{said} again {n} {{x}}"]}]} for n in range(N)]
    return str(lines(path, rows))


def recipe(url: str, data: Path, **changes) -> JudgeRecipe:
    section = JudgeSection(url=url, model="fake", timeout_s=5, tries=2, retry_s=0.01, at_once=2)
    return JudgeRecipe(dataclasses.replace(section, **changes), QuestionsSection(data=str(data)))


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "judgements.jsonl").read_text().splitlines()]


def test_one_model_is_rated_with_an_interval_and_every_prompt_is_kept(tmp_path, data, monkeypatch):
    monkeypatch.setenv("MY_KEY", "a-key-nobody-may-see")
    a = answers(tmp_path / "a.jsonl", "fine")
    with fake_judge(lambda prompt, n: "Good. [[8]]" if "again" in prompt else "Fair: [[4.5]], not [[9]]") as endpoint:
        found = judge([a], recipe(endpoint.url, data, key_variable="MY_KEY"), tmp_path / "out")
    metrics = found["metrics"]
    assert metrics["score, turn 1"]["value"] == 4.5 and metrics["score, turn 2"]["value"] == 8
    assert metrics["score"]["value"] == 6.25 and metrics["score"]["n"] == 2 * N
    assert metrics["score, math"] == {"value": 6.25, "low": None, "high": None, "n": 2}
    assert (found["n_calls"], found["n_failed"], found["n_unread"]) == (2 * N, 0, 0)
    body = endpoint.bodies[0]
    assert body["temperature"] == 0 and body["model"] == "fake" and body["messages"][0]["content"] == "Judge."
    assert set(endpoint.keys) == {"Bearer a-key-nobody-may-see"}
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 2 * N and any("gold one" in row["prompt"][1]["content"] for row in rows)
    assert any("{x}" in row["prompt"][1]["content"] for row in rows)
    assert "a-key-nobody-may-see" not in (tmp_path / "out/judgements.jsonl").read_text() + json.dumps(found)


def test_two_models_are_judged_in_both_orders_and_a_judge_of_places_gives_ties(tmp_path, data):
    a, b = answers(tmp_path / "a.jsonl", "good"), answers(tmp_path / "b.jsonl", "bad")

    def by_text(prompt: str, n: int) -> str:
        return "[[A]]" if "[A]good" in prompt else "[[B]]"

    with fake_judge(by_text) as endpoint:
        found = judge([a, b], recipe(endpoint.url, data), tmp_path / "one")
        turned = judge([b, a], recipe(endpoint.url, data), tmp_path / "one")
    assert found["n_calls"] == 4 * N and found["metrics"]["wins"]["value"] == 1.0
    assert found["metrics"]["score"]["value"] == 1.0 and found["metrics"]["same in both orders"]["value"] == 1.0
    assert turned["metrics"]["losses"]["value"] == 1.0
    assert len(rows_of(tmp_path / "one")) == 4 * N, "the same pairs in both orders were asked before"
    with fake_judge(lambda prompt, n: "[[A]]") as endpoint:
        found = judge([a, b], recipe(endpoint.url, data), tmp_path / "two")
    assert found["metrics"]["ties"]["value"] == 1.0 and found["metrics"]["same in both orders"]["value"] == 0.0


def test_a_judge_that_is_down_is_given_up_after_a_few_calls_and_named(tmp_path, data):
    a = answers(tmp_path / "a.jsonl", "fine")
    with fake_judge(lambda prompt, n: "[[5]]") as endpoint:
        url = endpoint.url  # nobody listens there any more
    began = time.monotonic()
    with pytest.raises(DataError, match=r"no verdict in 12 calls; the first: question 0: .*refused"):
        judge([a], recipe(url, data, give_up_after=3), tmp_path / "out")
    assert time.monotonic() - began < 5
    assert 3 <= len(rows_of(tmp_path / "out")) <= 5 and all(row["raw"] is None for row in rows_of(tmp_path / "out"))


def test_failures_in_between_are_missing_and_asked_again_by_the_next_start(tmp_path, data):
    a = answers(tmp_path / "a.jsonl", "fine")
    with fake_judge(lambda prompt, n: 503 if "ask 3?" in prompt else "[[6]]") as endpoint:
        found = judge([a], recipe(endpoint.url, data), tmp_path / "out")
        assert len(endpoint.bodies) == 2 * N + 2, "two tries for each of the two turns"
    assert found["n_failed"] == 2 and found["metrics"]["score"] == {"value": 6.0, "low": 6.0, "high": 6.0, "n": 10}
    assert "question 3: HTTP 503" in found["problems"][0]
    with fake_judge(lambda prompt, n: "[[1]]") as endpoint:
        found = judge([a], recipe(endpoint.url, data), tmp_path / "out")
        assert len(endpoint.bodies) == 2
    assert found["n_failed"] == 0 and found["metrics"]["score"]["value"] == pytest.approx((10 * 6 + 2) / 12)


@pytest.mark.parametrize(
    "nonsense",
    [
        "I like both, and Rating: seven out of ten.",
        "[[11]]",
        b"<html>busy</html>",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": null}}]}',
        b"[1, 2",
        "",
    ],
)
def test_nonsense_is_missing(tmp_path, data, nonsense):
    a = answers(tmp_path / "a.jsonl", "fine")
    with fake_judge(lambda prompt, n: "[[7]]" if "ask 1?" in prompt else nonsense) as endpoint:
        found = judge([a], recipe(endpoint.url, data, tries=1), tmp_path / "out")
    assert found["n_failed"] + found["n_unread"] == 2 * N - 2
    assert found["metrics"]["score"] == {"value": 7.0, "low": None, "high": None, "n": 2}


@pytest.mark.parametrize("drip_s", [0.0, 0.05])
def test_a_slow_judge_is_left_at_the_deadline_also_when_it_trickles(tmp_path, data, drip_s):
    a = answers(tmp_path / "a.jsonl", "fine")

    def slow(prompt: str, n: int) -> str:
        if not drip_s:
            time.sleep(1.5)
        return "[[5]]" + "x" * 100

    began = time.monotonic()
    with fake_judge(slow, drip_s=drip_s) as endpoint:
        changes = {"timeout_s": 0.4, "tries": 1, "give_up_after": 2}
        with pytest.raises(DataError, match=r"no verdict in 12 calls; the first: .*(timed out|not done after)"):
            judge([a], recipe(endpoint.url, data, **changes), tmp_path / "out")
    assert time.monotonic() - began < 4


def test_a_refused_key_and_a_missing_one_stop_at_once(tmp_path, data, monkeypatch):
    a = answers(tmp_path / "a.jsonl", "fine")
    with fake_judge(lambda prompt, n: 401) as endpoint:
        with pytest.raises(DataError, match=r"refuses the call .HTTP 401"):
            judge([a], recipe(endpoint.url, data), tmp_path / "out")
        assert len(endpoint.bodies) <= 2
        monkeypatch.delenv("NO_SUCH", raising=False)
        with pytest.raises(DataError, match=r"judge.key_variable = NO_SUCH"):
            judge([a], recipe(endpoint.url, data, key_variable="NO_SUCH"), tmp_path / "out")


def test_a_stopped_judge_goes_on_without_asking_twice(tmp_path, data):
    a, asked = answers(tmp_path / "a.jsonl", "fine"), []
    with fake_judge(lambda prompt, n: "[[5]]") as endpoint:
        section = recipe(endpoint.url, data, at_once=1)
        with pytest.raises(KeyboardInterrupt):
            judge([a], section, tmp_path / "out", on_progress=lambda *row: asked.append(row),
                  should_stop=lambda: len(asked) >= 5)  # fmt: skip
        found = judge([a], section, tmp_path / "out")
        assert len(endpoint.bodies) <= 2 * N + 1  # at most the call in flight is lost
    assert found["metrics"]["score"]["n"] == 2 * N


def test_more_calls_than_allowed_are_refused_before_the_first(tmp_path, data):
    a = answers(tmp_path / "a.jsonl", "fine")
    with fake_judge(lambda prompt, n: "[[5]]") as endpoint:
        with pytest.raises(RecipeError, match=r"judge.max_calls = 11 but 12 calls are needed"):
            judge([a], recipe(endpoint.url, data, max_calls=11), tmp_path / "out")
        assert not endpoint.bodies


def test_bad_answers_and_bad_recipes_are_named(tmp_path, data):
    path = lines(tmp_path / "bad.jsonl", [{"question_id": 0, "answer": "x"}, {"answer": "y"}])
    with pytest.raises(DataError, match=r"bad.jsonl:2: .*question_id"):
        judge([str(path)], recipe("http://x", data), tmp_path / "out")
    for turns in (7, "x", {"a": "b"}):
        path = lines(tmp_path / "bad.jsonl", [{"question_id": 0, "turns": turns}])
        with pytest.raises(DataError, match=r"bad.jsonl:1: .*is no list.*; a row needs question_id and answer"):
            judge([str(path)], recipe("http://x", data), tmp_path / "out")
    for row, message in (({"key": "a", "raw": 7}, r"raw = 7 of key a is no text"), ({"raw": "x"}, "it has no 'key'")):
        path = lines(tmp_path / "out/judgements.jsonl", [row])
        with pytest.raises(DataError, match=rf"{path} is damaged \({message}\); repair or remove that line"):
            judge([answers(tmp_path / "a.jsonl", "a")], recipe("http://x", data), tmp_path / "out")
    for section, message in (
        (JudgeSection(model="m"), "judge.url = ''"),
        (JudgeSection(url="http://x"), "judge.model"),
    ):
        with pytest.raises(RecipeError, match=message):
            check(JudgeRecipe(section))
    pair = JudgeRecipe(JudgeSection("http://x", "m"), QuestionsSection("alignbench", str(SHARED / "eval")))
    if SHARED.is_dir():
        with pytest.raises(RecipeError, match="judges one model at a time"):
            judge(["a", "b"], pair, tmp_path / "out")


@pytest.mark.parametrize("row", [{}, {"name": "single-v1"}, {"name": ["x"], "system_prompt": 1, "prompt_template": 2}])
def test_official_files_of_another_form_are_named(tmp_path, data, row):
    lines(data / "mt_bench/judge_prompts.jsonl", [row])
    with pytest.raises(DataError, match=r"mt_bench .*is damaged .*; give the official files"):
        judge([answers(tmp_path / "a.jsonl", "a")], recipe("http://x", data), tmp_path / "out")


def test_patterns_read_one_verdict_or_none():
    assert [rating(text) for text in ("[[10]]", "so [[2.5]].", "[[0]]", "10", "[[x]]")] == [10, 2.5, None, None, None]
    assert [winner(t) for t in ("[[A]]", "x [[C]] [[C]]", "[[A]] or [[B]]", "A", "[[D]]")] == [
        "A",
        "C",
        None,
        None,
        None,
    ]
    assert [harmless(t) for t in ("[[safe]]", "[[harmful]]", "[[safe]] [[harmful]]", "safe")] == [1.0, 0.0, None, None]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data")
@pytest.mark.parametrize(
    ("name", "n_cases", "n_calls"),
    [("mt_bench", 80, 160), ("mt_bench_zh", 80, 160), ("alignbench", 683, 683), ("do_not_answer", 939, 939)],
)
def test_official_files_make_calls(name, n_cases, n_calls):
    found = judged(name, SHARED / "eval", 0)
    calls = [call for case in found.cases for call in found.single(case, [f"answer to {turn}" for turn in case.turns])]
    assert (len(found.cases), len(calls)) == (n_cases, n_calls)
    by_id = {case.id: case for case in found.cases}
    for call in calls:
        text = call.messages[-1]["content"]
        assert by_id[call.item].turns[call.turn] in text and f"answer to {by_id[call.item].turns[call.turn]}" in text
    if name == "mt_bench":
        assert sum(bool(case.references) for case in found.cases) == 30


def test_a_run_answers_both_turns_and_goes_on_where_it_was_stopped(tmp_path, data, tiny_tokens):
    run, seen = run_of(tmp_path / "run", tiny_tokens), []
    with fake_judge(lambda prompt, n: "[[3]]") as endpoint:
        asked = recipe(endpoint.url, data)
        asked = dataclasses.replace(
            asked, questions=dataclasses.replace(asked.questions, template="deepseek-llm", max_tokens=4, limit=3)
        )
        with pytest.raises(KeyboardInterrupt):
            judge([str(run)], asked, tmp_path / "out", on_progress=lambda *row: seen.append(row),
                  should_stop=lambda: len(seen) == 4)  # fmt: skip
        (path,) = (run / "evaluation").glob("mt_bench.*.turns.jsonl")
        before = path.read_text()
        found = judge([str(run)], asked, tmp_path / "out")
    assert len(before.splitlines()) == 4 and path.read_text().startswith(before)
    assert len(path.read_text().splitlines()) == 6, "each turn of each question is written once"
    assert found["metrics"]["score"]["value"] == 3 and found["n_calls"] == 6
    with pytest.raises(DataError, match="has no chat template"):
        judge([str(run)], recipe("http://x", data), tmp_path / "out")


def test_the_command_judges_and_writes_json(tmp_path, data, capsys):
    a, b = answers(tmp_path / "a.jsonl", "good"), answers(tmp_path / "b.jsonl", "bad")
    with fake_judge(lambda prompt, n: "[[B]]" if "[A]good" in prompt else "[[A]]") as endpoint:
        (tmp_path / "judge.toml").write_text(f'[judge]\nurl = "{endpoint.url}"\nmodel = "fake"\n')
        words = ["judge", a, b, str(tmp_path / "judge.toml"), "--data", str(data), "--limit", "3"]
        main([*words, "--out", str(tmp_path / "out"), "--json", str(tmp_path / "f.json")])
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["n_questions"] == 3 and found["metrics"]["losses"]["value"] == 1.0
    assert "12 calls, 0 failed" in capsys.readouterr().out
