"""The command: scores in their fixed form, killed and resumed, other settings beside each other, bad input by name."""

import json
import shutil
from types import SimpleNamespace

import pytest
from evaluation_runs import CONFIG, official_files, run_of
from killing import finish, killed_after, n_lines, start

from isoflop.cli.main import main
from isoflop.evaluation import collect, run
from isoflop.evaluation.collect import Answers
from isoflop.run import read_json_lines
from isoflop.sandbox.jobs import Outcome, Verdict

TASKS = ("piqa", "winogrande", "nq_open", "pile")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return official_files(tmp_path_factory.mktemp("official"))


@pytest.fixture
def trained(tmp_path, tiny_tokens):
    return run_of(tmp_path / "run", tiny_tokens)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "eval.toml"
    path.write_text('[likelihood]\nmetrics = ["acc_token", "acc_whole_text"]\n[generation]\nmax_tokens = 8\n')
    return path


def call(*words):
    main(["eval", *map(str, words)])


def test_scores_come_in_the_fixed_form_with_a_line_an_item_and_a_record_a_task(trained, recipe, data, tmp_path):
    out, lines = tmp_path / "scores.json", tmp_path / "samples.jsonl"
    call(trained, recipe, "--data", data, "--tasks", ",".join(TASKS), "--json", out, "--samples", lines)
    (name,) = json.loads(out.read_text())["runs"]
    found = json.loads(out.read_text())["runs"][name]
    assert name == str(trained) and tuple(found["tasks"]) == TASKS
    assert [*found["tasks"]["piqa"]] == ["acc", "acc_norm", "acc_token", "acc_whole_text", "answer_bits_per_byte"]
    for metrics in found["tasks"].values():
        for value in metrics.values():
            assert [*value] == ["value", "low", "high", "n"] and value["low"] <= value["value"] <= value["high"]
    assert found["settings"]["style"] == "text" and found["settings"]["model_sha256"]
    rows = read_json_lines(lines)
    assert [sum(row["task"] == task for row in rows) for task in TASKS] == [24, 24, 24, 6]
    assert all(row["scores"] for row in rows) and rows[0]["prompt"].startswith("Question: ")
    acc = [row["scores"]["acc"] for row in rows if row["task"] == "piqa"]
    assert found["tasks"]["piqa"]["acc"]["value"] == sum(acc) / 24
    records = read_json_lines(trained / "evaluation.jsonl")
    assert [record["task"] for record in records] == [*TASKS]
    assert records[0]["metrics"] == found["tasks"]["piqa"]


def test_an_answer_is_asked_once_whatever_the_limit(trained, recipe, data, tmp_path, monkeypatch):
    asked = []
    kept = collect.score_items
    monkeypatch.setattr(run, "score_items", lambda m, p, items, **o: asked.append(len(items)) or kept(m, p, items, **o))
    for limit in (5, 9, 0, 3):
        call(trained, recipe, "--data", data, "--tasks", "piqa", "--limit", limit, "--json", tmp_path / "s.json")
        n = json.loads((tmp_path / "s.json").read_text())["runs"][str(trained)]["tasks"]["piqa"]["acc"]["n"]
        assert n == (limit or 24)
    assert asked == [5, 4, 15]
    call(
        trained, recipe, "likelihood.metrics=[]", "--data", data, "--tasks", "piqa"
    )  # other numbers: a file of its own
    assert asked[-1] == 24 and len([*(trained / "evaluation").glob("piqa.*.jsonl")]) == 2


def test_killed_anywhere_it_loses_no_item_and_counts_none_twice(tmp_path, tiny_tokens, recipe):
    data = official_files(tmp_path / "official", 700)
    whole, killed = (run_of(tmp_path / name, tiny_tokens) for name in ("whole", "killed"))
    words = (recipe, "--data", data, "--tasks", "piqa,nq_open")
    assert finish(start("eval", whole, *words, "--json", tmp_path / "whole.json"))[0] == 0
    (done,) = (path.name for path in (whole / "evaluation").glob("nq_open.*"))
    (scored,) = (path.name for path in (whole / "evaluation").glob("piqa.*"))
    assert (n_lines(whole / "evaluation" / scored), n_lines(whole / "evaluation" / done)) == (700, 700)
    n_kills = sum(
        killed_after(killed / "evaluation" / name, n, "eval", killed, *words)
        for name, n in ((scored, 60), (scored, 300), (done, 0), (done, 300))
    )
    assert n_kills >= 3
    path = killed / "evaluation" / done
    path.write_bytes(path.read_bytes() + b'{"item": 699, "outp')  # a torn line
    assert finish(start("eval", killed, *words, "--json", tmp_path / "killed.json"))[0] == 0
    first, second = (json.loads((tmp_path / f"{name}.json").read_text())["runs"] for name in ("whole", "killed"))
    for task, metrics in first[str(whole)]["tasks"].items():
        for metric, value in metrics.items():  # what is computed together differs, so sums are rounded otherwise
            assert second[str(killed)]["tasks"][task][metric] == pytest.approx(value, rel=1e-6), metric
    for name in (done, scored):
        items = [row["item"] for row in read_json_lines(killed / "evaluation" / name)]
        assert sorted(items) == list(range(700))


def test_a_program_that_the_sandbox_refused_is_asked_again_and_not_counted(tmp_path):
    from isoflop.evaluation.tasks.catalogue import task
    from isoflop.evaluation.tasks.task import Question

    answers = Answers.open(tmp_path / "humaneval.jsonl")
    items = {n: Question(str(n), "def f():", {"test": "", "entry_point": "f"}, ()) for n in range(2)}
    answers.add({"item": n, "n_cut": 0, "outputs": ["pass"]} for n in items)
    outcomes = [Outcome(Verdict.REFUSED), Outcome(Verdict.PASSED)]
    sandbox = SimpleNamespace(run_all=lambda jobs: outcomes)
    answers.add(collect.judge(task("humaneval"), items, answers, sandbox))
    assert "verdicts" not in answers.known[0] and answers.known[1]["verdicts"] == [["passed", ""]]
    assert [*Answers.open(answers.path).known] == [0, 1]


def test_options_without_tokens_are_named_and_left_out(trained, recipe, data, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    lines = (copy / "piqa/valid.jsonl").read_text().splitlines()
    lines[3] = json.dumps({**json.loads(lines[3]), "sol2": ""})
    lines[5] = json.dumps({"goal": "nothing else"})
    (copy / "piqa/valid.jsonl").write_text("\n".join(lines) + "\n")
    call(trained, recipe, "--data", copy, "--tasks", "piqa", "--json", tmp_path / "s.json")
    found = json.loads((tmp_path / "s.json").read_text())["runs"][str(trained)]
    details = found["details"]["piqa"]
    assert (details["n_items"], details["n_missing"], details["n_skipped"]) == (23, 1, 1)
    assert found["tasks"]["piqa"]["acc"]["n"] == 22
    assert details["problems"][0].endswith("valid.jsonl:6: field 'sol1' is missing")
    assert details["problems"][1] == "valid.jsonl:4: option 2 has no tokens"
    assert "1 missing, 1 rows skipped" in capsys.readouterr().out


def test_an_answer_that_was_edited_is_refused_with_its_line_and_field(trained, recipe, data, refused):
    asked = ("--data", data, "--tasks", "piqa,nq_open", "--limit", 4)
    call(trained, recipe, *asked)
    for task, key, value, message in (
        ("piqa", "nats", None, "nats is missing"),
        ("piqa", "nats", ["a", 1.0], "nats[0] = 'a' must be a number"),
        ("piqa", "nats", [1.0], "nats has 1 values and must have 2"),
        ("piqa", "nats_tokens", [0, 1], "nats_tokens[0] = 0 must be at least 1"),
        ("piqa", "is_greedy", None, "is_greedy is missing"),
        ("piqa", "whole_text", 3, "whole_text = 3 must be a list"),
        ("piqa", "n_cut", None, "n_cut is missing"),
        ("piqa", "item", None, "item is missing"),
        ("piqa", "item", "3", "item = '3' must be a whole number"),
        ("nq_open", "outputs", None, "outputs is missing"),
        ("nq_open", "outputs", [], "outputs has 0 values and must have 1"),
        ("nq_open", "outputs", [7], "outputs[0] = 7 must be text"),
    ):
        (path,) = (trained / "evaluation").glob(f"{task}.*.jsonl")
        before = path.read_text()
        lines = before.splitlines()
        changed = json.loads(lines[1]) | {key: value}
        lines[1] = json.dumps({name: item for name, item in changed.items() if item is not None})
        path.write_text("\n".join(lines) + "\n")
        way_out = "; repair or remove that line, or delete the file to ask again"
        assert f"{path} line 2: {message}{way_out}" in refused("eval", trained, recipe, *asked).replace(
            ", for example [1, 2]", ""
        )
        path.write_text(before)
    call(trained, recipe, *asked)


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        ({}, ("--tasks", "piqa,none"), "task 'none' is unknown"),
        ({}, ("--tasks", "mmlu"), "task mmlu: "),
        ({}, ("generation.n_samples=4",), "generation.n_samples = 4 with temperature = 0 gives the same answer"),
        ({}, ("generation.k=[2]",), "generation.k = [2] must be at most generation.n_samples = 1"),
        ({"piqa/valid.jsonl": '{"other": 1}\n' * 24}, ("--tasks", "piqa"), "valid.jsonl:1: field 'sol1' is missing"),
        ({"piqa/valid-labels.lst": "1\n"}, ("--tasks", "piqa"), "1 labels for 24 questions"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(trained, recipe, data, tmp_path, refused, change, words, message):
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    for name, text in change.items():
        (copy / name).write_text(text)
    assert message in refused("eval", trained, recipe, *words, "--data", copy)
    assert not (trained / "evaluation.jsonl").exists()


def test_a_run_without_a_tokenizer_is_refused(trained, recipe, data, refused):
    shutil.rmtree(trained / "tokenizer")
    shutil.copy(trained / "recipe.toml", trained / "kept.toml")
    (trained / "recipe.toml").write_text((trained / "kept.toml").read_text().partition("[data]")[0])
    assert "has no tokenizer" in refused("eval", trained, recipe, "--data", data, "--tasks", "piqa")


def test_a_tokenizer_without_an_end_of_text_writes_up_to_the_limit(tmp_path, tiny_tokens, recipe, data):
    import tokenizers

    trained = run_of(tmp_path / "run", tiny_tokens, config=CONFIG)
    config = json.loads((tiny_tokens / "tokenizer_config.json").read_text())
    backend = tokenizers.Tokenizer.from_file(str(tiny_tokens / "tokenizer.json"))
    backend.save(str(trained / "tokenizer" / "tokenizer.json"))
    foreign = {"bos_token": config["bos_token"], "tokenizer_class": config["tokenizer_class"]}
    (trained / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(foreign))
    call(trained, recipe, "--data", data, "--tasks", "piqa,nq_open", "--limit", 4, "--json", tmp_path / "s.json")
    found = json.loads((tmp_path / "s.json").read_text())["runs"][str(trained)]
    assert found["settings"]["eos_id"] is None and found["tasks"]["nq_open"]["exact_match"]["n"] == 4
