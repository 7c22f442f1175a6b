"""Every task reads its official files, its right answers are graded right, and bad rows are named."""

import gzip
import json
import shutil
import tarfile
from collections import Counter

import pytest
from places import ROOT, SHARED

from isoflop.errors import DataError, RecipeError
from isoflop.evaluation.tasks.catalogue import NAMES, OTHERS, task
from isoflop.evaluation.tasks.files import members, table
from isoflop.evaluation.tasks.task import Choice, Question

EVAL = SHARED / "eval"
needs_data = pytest.mark.skipif(not EVAL.is_dir(), reason="official files lie beside the checkout")
N_ITEMS = {
    "hellaswag": 10042,
    "piqa": 1838,
    "winogrande": 1267,
    "triviaqa": 2995,
    "nq_open": 3610,
    "mmlu": 14042,
    "arc_easy": 2376,
    "openbookqa": 500,
    "drop": 19,
    "gsm8k": 1319,
    "humaneval": 164,
    "mbpp": 300,
    "bbh": 6511,
    "agieval": 8264,
    "cluewsc": 976,
    "chid": 2002,
    "cmmlu": 9465,
    "cmath": 1098,
    "c3": 3892,
    "ccpm": 2720,
    "leetcode": 180,
    "ifeval": 541,
}
"""Rows of the shared files, less five worked examples of triviaqa and the problems of mbpp that are no test."""
RIGHT = {
    "triviaqa": lambda q: f" {q.gold[-1]}\nQuestion:",
    "nq_open": lambda q: f" the {q.gold[0]}\nQ:",
    "drop": lambda q: f" {q.gold[0][0]}. And",
    "math": lambda q: f" So it is $\\boxed{{{q.gold}}}$.\n\nProblem:\nmore \\boxed{{0}}",
    "gsm8k": lambda q: f" {q.gold}\nQuestion: more #### 1",
    "bbh": lambda q: f"So the answer is {q.gold}.\n\nQ: more",
    "agieval": lambda q: f" {q.gold}\n",
    "cmath": lambda q: f"1+1 ... {q.gold}\n\n0",
}


@needs_data
@pytest.mark.parametrize("name", NAMES)
def test_task_reads_its_official_files(name):
    wanted = task(name)
    found = wanted.read(EVAL, wanted.n_shots)
    assert wanted.name == name
    assert len(found.skipped) == (5 if name == "agieval" else 0)  # five rows have no answer
    if name == "math":
        assert len(found.items) in (5000, 4996)
    else:
        assert len(found.items) == N_ITEMS[name]
    assert len({(item.id, item.group) for item in found.items}) == len(found.items)
    for item in found.items:
        if isinstance(item, Choice):
            assert item.gold and all(0 <= g < len(item.options) for g in item.gold)
            assert all(option.strip() for option in item.options)
            assert item.context or len(item.contexts) == len(item.options) or name == "chid"  # a gap at the start
        else:
            assert item.prompt and (wanted.grade or wanted.job)
    if wanted.n_shots:
        assert all(item.prefix for item in found.items)
        assert len(wanted.read(EVAL, 0).items[0].prefix) < len(found.items[0].prefix)


@needs_data
@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_are_right_and_wrong_ones_are_not(name):
    wanted = task(name)
    assert wanted.grade is not None
    questions = [item for item in wanted.read(EVAL, 0).items if isinstance(item, Question)][:300]
    scores = [wanted.grade(question, RIGHT[name](question)) for question in questions]
    assert all(set(score) == set(wanted.metrics) for score in scores)
    mean = sum(sum(score.values()) for score in scores) / (len(scores) * len(wanted.metrics))
    # stop texts cut some: triviaqa, nq_open and drop at full stops and commas, bbh at a capital Q
    assert mean >= {"triviaqa": 0.9, "nq_open": 0.85, "drop": 0.8}.get(name, 0.99)
    for output in ("", " zzz", " The answer is unknown"):
        total = sum(sum(wanted.grade(question, output).values()) for question in questions)
        assert total == (name == "nq_open" and output == "")  # one answer there is "---"


@needs_data
def test_chance_is_chance():
    """Labels are spread over all options."""
    for name in ("hellaswag", "mmlu", "arc_easy", "openbookqa", "cmmlu", "c3", "ccpm", "chid", "piqa"):
        items = [item for item in task(name).read(EVAL, 0).items if isinstance(item, Choice)]
        shares = Counter(item.gold[0] for item in items)
        assert max(shares.values()) < 0.6 * len(items) and len(shares) == max(len(item.options) for item in items)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )


GOOD = {"activity_label": "A", "ctx": "One. two", "label": 1, "endings": ["a", "b"]}


def test_bad_rows_are_named_by_file_and_line_and_skipped(tmp_path):
    bad = [{k: v for k, v in GOOD.items() if k != "endings"}, "{torn", {**GOOD, "label": 2}]
    write(tmp_path / "hellaswag/hellaswag_val.jsonl", [GOOD] * 40 + bad)
    found = task("hellaswag").read(tmp_path, 0)
    assert len(found.items) == 40
    first, second, third = found.skipped
    assert first.endswith("hellaswag_val.jsonl:41: field 'endings' is missing")
    assert "hellaswag_val.jsonl:42: no JSON" in second
    assert third.endswith("hellaswag_val.jsonl:43: the answer 2 is none of 2 options")


def test_another_version_of_a_file_is_refused(tmp_path):
    write(tmp_path / "hellaswag/hellaswag_val.jsonl", [{"text": "x"}] * 5)
    with pytest.raises(DataError, match=r"5 of 5 rows cannot be used; first: .*val\.jsonl:1: field 'ctx' is missing"):
        task("hellaswag").read(tmp_path, 0)
    write(tmp_path / "hellaswag/hellaswag_val.jsonl", [])
    with pytest.raises(DataError, match="its files hold no row; give the official file"):
        task("hellaswag").read(tmp_path, 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(name, tmp_path):
    with pytest.raises(DataError, match=r"has no .*official files"):
        task(name).read(tmp_path, task(name).n_shots)


def test_broken_archives_are_named(tmp_path):
    (tmp_path / "mmlu").mkdir()
    (tmp_path / "mmlu/data.tar.gz").write_bytes(gzip.compress(b"no archive"))
    (tmp_path / "hellaswag").mkdir()
    (tmp_path / "hellaswag/hellaswag_val.jsonl.gz").write_bytes(b"no gzip")
    for name in ("mmlu", "hellaswag"):
        with pytest.raises(DataError, match=r"gz cannot be read (?s:.*); fetch it again"):
            task(name).read(tmp_path, 0)


def test_archives_and_tables_damaged_inside_are_named(tmp_path):
    folder = tmp_path / "data/dev"
    folder.mkdir(parents=True)
    (folder / "law.csv").write_text("".join(f"{n},{n * n},{n**3}\n" for n in range(20_000)))
    (tmp_path / "mmlu").mkdir()
    path = tmp_path / "mmlu/data.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tmp_path / "data", "data")
    whole = path.read_bytes()
    for n in (len(whole) // 3, len(whole) // 2):
        path.write_bytes(whole[:n] + bytes(50) + whole[n + 50 :])
        with pytest.raises(DataError, match=r"gz cannot be read (?s:.*); fetch it again"):
            dict(members(tmp_path / "mmlu", "data.tar.gz", "data/dev", ".csv"))
    with pytest.raises(DataError, match=r"t\.csv:\d+ is no table .*; fetch it again"):
        list(table(tmp_path / "t.csv", 'a,b\n1,"' + "x\n" * 100_000, header=True))


def test_labels_of_another_file_are_refused(tmp_path):
    write(tmp_path / "piqa/valid.jsonl", [{"goal": "g", "sol1": "a", "sol2": "b"}] * 3)
    write(tmp_path / "piqa/valid-labels.lst", ["0", "1"])
    with pytest.raises(DataError, match="has 2 labels for 3 questions"):
        task("piqa").read(tmp_path, 0)


def test_an_unknown_task_is_refused():
    with pytest.raises(RecipeError, match=r"task 'mmlu_pro' is unknown; known tasks: hellaswag, piqa"):
        task("mmlu_pro")


@needs_data
def test_unpacked_archives_read_the_same(tmp_path):
    (tmp_path / "bbh").mkdir()
    shutil.unpack_archive(EVAL / "bbh/bbh.tar.gz", tmp_path / "bbh", filter="data")
    packed, unpacked = task("bbh").read(EVAL, 3), task("bbh").read(tmp_path, 3)
    assert [q.prompt for q in unpacked.items] == [q.prompt for q in packed.items]  # type: ignore[union-attr]


def test_the_official_layouts_are_read_too(tmp_path):
    row = {
        "activity_label": "Sport",
        "ctx_a": "He runs.",
        "ctx_b": "the Man",
        "label": "0",
        "endings": ["[x] a  b", "c"],
    }
    write(tmp_path / "hellaswag/hellaswag_val.jsonl", [row])
    (found,) = task("hellaswag").read(tmp_path, 0).items
    assert found.context == "Sport: He runs. The man" and found.options == (" a b".replace(" a", "  a"), " c")
    row = {"sentence": "Ann met Eve, so _ left.", "option1": "Ann", "option2": "Eve", "answer": "2"}
    write(tmp_path / "winogrande/winogrande.jsonl", [row])
    (found,) = task("winogrande").read(tmp_path, 0).items
    assert found.contexts == ("Ann met Eve, so Ann", "Ann met Eve, so Eve")
    assert found.options == (" left.", " left.") and found.gold == (1,)
    row = {"question": "Q?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}
    write(tmp_path / "arc/arc_easy.jsonl", [row])
    (found,) = task("arc_easy").read(tmp_path, 0).items
    assert (found.context, found.options, found.gold) == ("Question: Q?\nAnswer:", (" x", " y"), (1,))


def test_the_page_on_evaluation_has_every_task_as_it_is():
    page = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    for name in (*NAMES, *OTHERS):
        wanted = task(name)
        row = f"| `{name}` | {wanted.lm_eval or 'none'} | {wanted.n_shots} | {', '.join(wanted.metrics)} | "
        assert row in page, name
