"""Tasks whose official files are not at hand: read from generated files of the same layouts."""

import json

import pytest
import zstandard

from isoflop.errors import DataError
from isoflop.evaluation.tasks.catalogue import OTHERS, task
from isoflop.evaluation.tasks.task import Choice, Passage


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_race_shows_earlier_answers_and_asks_the_last_question(tmp_path):
    article = {
        "article": "It rained.",
        "questions": ["It  _  .", "Why?", "What fell?"],
        "options": [["rained", "snowed", "hailed", "cleared"], ["a", "b", "c", "d"], ["rain", "snow", "hail", "men"]],
        "answers": ["A", "C", "A"],
        "id": "high1.txt",
    }
    write(tmp_path / "race/test/high/1.txt", json.dumps(article))
    (item,) = task("race").read(tmp_path, 0).items
    assert isinstance(item, Choice)
    assert item.context == "Article: It rained.\n\nIt rained\nQuestion: Why?\nAnswer: c\nWhat fell?"
    assert item.options == (" rain", " snow", " hail", " men") and item.gold == (0,)


def test_race_equals_lm_eval(tmp_path):
    peer = pytest.importorskip("lm_eval.tasks.race.preprocess_race")
    article = {
        "article": "Some text .",
        "questions": ["He came from   _  .", "Which one?", "The writer  _  ."],
        "options": [["a x", "b", "c", "d"]] * 3,
        "answers": ["A", "D", "B"],
    }
    write(tmp_path / "race/high/7.txt", json.dumps(article))
    (item,) = task("race").read(tmp_path, 0).items
    problems = [
        {"question": q, "options": o, "answer": a}
        for q, o, a in zip(article["questions"], article["options"], article["answers"])
    ]
    doc = {"article": article["article"], "problems": repr(problems)}
    assert isinstance(item, Choice) and item.context == peer.doc_to_text(doc)
    assert [o[1:] for o in item.options] == peer.doc_to_choice(doc) and item.gold == (peer.doc_to_target(doc),)


@pytest.mark.parametrize("label", ["B", "2"])
def test_arc_challenge_reads_the_official_file(label, tmp_path):
    names = "ABCD" if label == "B" else "1234"
    choices = [{"text": f"t{name}", "label": name} for name in names]
    row = {"id": "x", "question": {"stem": "Why?", "choices": choices}, "answerKey": label}
    write(tmp_path / "arc/ARC-Challenge-Test.jsonl", json.dumps(row) + "\n")
    (item,) = task("arc_challenge").read(tmp_path, 0).items
    assert isinstance(item, Choice) and item.context == "Question: Why?\nAnswer:"
    assert item.options[1] == f" t{label}" and item.gold == (1,)


def test_ceval_has_its_header_and_worked_examples(tmp_path):
    head = "id,question,A,B,C,D,answer"
    write(tmp_path / "ceval/dev/law_dev.csv", f'{head},explanation\n0,"dq, 1",a,b,c,d,B,why\n')
    write(tmp_path / "ceval/val/law_val.csv", f"{head}\n0,vq ,e,f,g,h,D\n")
    (item,) = task("ceval").read(tmp_path, 5).items
    assert isinstance(item, Choice)
    cue = "\u7b54\u6848\uff1a"
    assert item.prefix.startswith("\u4ee5\u4e0b\u662f\u4e2d\u56fd\u5173\u4e8e\u6cd5\u5b66\u7684")
    assert item.prefix.endswith(f"\n\ndq, 1\nA. a\nB. b\nC. c\nD. d\n{cue} B\n\n")
    assert item.context == f"vq\nA. e\nB. f\nC. g\nD. h\n{cue}" and item.gold == (3,)


@pytest.mark.parametrize("ending", ["", ".zst"])
def test_the_pile_is_read_by_subset(ending, tmp_path):
    rows = [
        {"text": "one \u2028 two", "meta": {"pile_set_name": "ArXiv"}},
        {"text": "x", "meta": {"pile_set_name": "Wiki"}},
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    (tmp_path / "pile").mkdir()
    data = zstandard.ZstdCompressor().compress(text) if ending else text
    (tmp_path / f"pile/test.jsonl{ending}").write_bytes(data)
    found = task("pile").read(tmp_path, 0).items
    assert found == [Passage("test.jsonl" + ending + ":1", "one \u2028 two", "ArXiv"),
                     Passage("test.jsonl" + ending + ":2", "x", "Wiki")]  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_missing_and_foreign_files_are_named(name, tmp_path):
    with pytest.raises(DataError, match=r"has no .*official files"):
        task(name).read(tmp_path, 0)
    for path in ("race/high/1.txt", "arc/ARC-Challenge-Test.jsonl", "pile/test.jsonl", f"cloze/{name}.jsonl"):
        write(tmp_path / path, "{}\n")
    write(tmp_path / "ceval/dev/law_dev.csv", "a,b\n1,2\n")
    write(tmp_path / "ceval/val/law_val.csv", "a,b\n1,2\n")
    with pytest.raises(DataError, match=r"1 of 1 rows cannot be used; first: .* is missing"):
        task(name).read(tmp_path, 0)
