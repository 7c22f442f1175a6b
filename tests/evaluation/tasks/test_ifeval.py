"""Each kind of instruction has passes and failures made by hand; real responses are judged as lm-eval judges them."""

import importlib
import sys

import pytest
from places import SHARED

from isoflop.evaluation.tasks import instructions
from isoflop.evaluation.tasks.files import json_lines
from isoflop.evaluation.tasks.ifeval import TASK, judge, loose_forms
from isoflop.evaluation.tasks.instructions import CHECKS, count_sentences, follows
from isoflop.evaluation.tasks.task import Question

EVAL = SHARED / "eval"
LEAST, LESS = "at least", "less than"
ENGLISH = "the quick brown fox jumps over the lazy dog while everybody in the village watches it"
CASES = {
    "keywords:existence": (
        {"keywords": ["apple", "Pear"]},
        ["An APPLE and a pear", "pineapple, pears"],
        ["an apple", ""],
    ),
    "keywords:frequency": (
        {"keyword": "fox ", "frequency": 2, "relation": LEAST},
        ["fox FOX", "foxes, foxes, fox"],
        ["fox", "none at all"],
    ),
    "keywords:forbidden_words": ({"forbidden_words": ["bad", "evil"]}, ["good", "badly put"], ["a Bad one", "evil!"]),
    "keywords:letter_frequency": (
        {"letter": "E", "let_frequency": 3, "let_relation": LESS},
        ["eE", "none"],
        ["eee", "Everywhere"],
    ),
    "language:response_language": (
        {"language": "de"},
        ["Das ist ein ganz gewöhnlicher deutscher Satz über das Wetter.", "12345"],
        [ENGLISH, "Ceci est une phrase française tout à fait ordinaire."],
    ),
    "length_constraints:number_sentences": (
        {"num_sentences": 3, "relation": LESS},
        ["One. Two!", "Mr. Smith paid 3.50 dollars. He left."],
        ["One. Two! Three?", "A. Nice. Day. Is. Here."],
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2},
        ["one\n***\ntwo", "***\none\n***\ntwo\n***"],
        ["one", "one\n***\n***\ntwo", "one *** two *** three"],
    ),
    "length_constraints:number_words": (
        {"num_words": 3, "relation": LEAST},
        ["one two three", "a-b c"],
        ["one two", "."],
    ),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Hello"},
        ["first\n\nhello there", 'first\n\n"Hello," he said'],
        ["hello\n\nfirst", "first\n\nhello\n\nthird", "hello"],
    ),
    "detectable_content:number_placeholders": (
        {"num_placeholders": 2},
        ["[name] [date]", "[a][b][c]"],
        ["[name]", "none"],
    ),
    "detectable_content:postscript": (
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. Call me", "text p. s. more"],
        ["Bye", "PS call"],
    ),
    "detectable_format:number_bullet_lists": (
        {"num_bullets": 2},
        ["* one\n* two", "- one\n  - two"],
        ["* one", "* a\n* b\n* c", "** a\n** b"],
    ),
    "detectable_format:constrained_response": (
        {},
        ["My answer is yes.", "Well: My answer is maybe."],
        ["yes", "My answer is perhaps."],
    ),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2},
        ["*one* and *two*", "**one** and *two*"],
        ["*one*", "** ** and nothing"],
    ),
    "detectable_format:multiple_sections": (
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb", "SECTION 1 SECTION 2 SECTION 3"],
        ["SECTION 1", "section 1 section 2"],
    ),
    "detectable_format:json_format": ({}, ['{"a": 1}', "```json\n[1, 2]\n```"], ["{a: 1}", 'Here: {"a": 1}']),
    "detectable_format:title": ({}, ["<<My title>>\ntext", "text <<t>>"], ["<title>", "<< >>", "<<a\nb>>"]),
    "combination:two_responses": (
        {},
        ["one\n******\ntwo", "******one******two******"],
        ["one", "one******one", "a******b******c", "a************b"],
    ),
    "combination:repeat_prompt": (
        {"prompt_to_repeat": "Say it."},
        ["say it. It", " Say it.\nYes"],
        ["It. Say it.", "Say"],
    ),
    "startend:end_checker": (
        {"end_phrase": "The End."},
        ["So. the end.", '"... The end."'],
        ["The end. Not", "The end"],
    ),
    "startend:quotation": ({}, ['"quoted"', ' "a" and "b" '], ["plain", '"open', '"']),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 2, "capital_relation": LEAST},
        ["NASA and ESA", "WELL-KNOWN FACT"],
        ["NASA and Esa", "none"],
    ),
    "change_case:english_capital": ({}, [ENGLISH.upper()], [ENGLISH, "DAS IST EIN GANZ GEWOEHNLICHER DEUTSCHER SATZ"]),
    "change_case:english_lowercase": ({}, [ENGLISH], [ENGLISH.capitalize(), "das ist ein ganz gewöhnlicher satz"]),
    "punctuation:no_comma": ({}, ["no such mark; none"], ["one, two"]),
}
LANGUAGE = ("language:response_language", "change_case:english_capital", "change_case:english_lowercase")


def test_all_25_kinds_have_cases():
    assert set(CASES) == set(CHECKS) and len(CHECKS) == 25


@pytest.mark.parametrize("kind", CASES)
def test_kind_tells_passes_from_failures(kind):
    if kind in LANGUAGE:
        pytest.importorskip("langdetect")
    arguments, good, bad = CASES[kind]
    assert [follows(kind, text, arguments) for text in good] == [True] * len(good)
    assert [follows(kind, text, arguments) for text in bad] == [False] * len(bad)
    assert not follows(kind, "  \n", arguments)


def test_both_relations():
    text = "one two three"
    for relation, right in ((LEAST, [True, True, False]), (LESS, [False, False, True])):
        given = [{"num_words": n, "relation": relation} for n in (2, 3, 4)]
        assert [follows("length_constraints:number_words", text, g) for g in given] == right
    with pytest.raises(ValueError, match="relation 'about' is neither 'at least' nor 'less than'"):
        follows("length_constraints:number_words", text, {"num_words": 2, "relation": "about"})


def test_other_kinds_and_arguments_are_refused():
    with pytest.raises(ValueError, match="'keywords:other' is none of the 25 kinds"):
        follows("keywords:other", "x", {})
    with pytest.raises(ValueError, match=r"keywords:existence: .*missing 1 required"):
        follows("keywords:existence", "x", {})


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("", 0),
        ("One", 1),
        ("One. Two", 2),
        ("What? No! Yes...", 3),
        ("It costs 3.50 today. Really.", 2),
        ("Dr. Who met Mrs. Smith. They spoke.", 2),
        ("J. R. R. Tolkien wrote it.", 1),
        ('He said "Go." Then he left.', 2),
        ("\u4f60\u597d\u3002\u518d\u89c1\u3002", 2),
        ("line one\nline two", 1),
    ],
)
def test_sentences_are_counted(text, n):
    assert count_sentences(text) == n


def test_loose_forms_are_the_eight():
    assert loose_forms("*a*\nb\nc") == ["*a*\nb\nc", "b\nc", "*a*\nb", "b", "a\nb\nc", "b\nc", "a\nb", "b"]
    question = Question("1", "", [("punctuation:no_comma", {}), ("startend:quotation", {})])
    assert judge(question, 'Sure, here:\n"text"') == ([False, False], [True, True])


def test_a_missing_detector_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "langdetect", None)
    with pytest.raises(ValueError, match=r"ifeval needs langdetect; install isoflop\[evaluation\]"):
        follows("language:response_language", "x y z", {"language": "en"})


@pytest.mark.skipif(not EVAL.is_dir(), reason="official files lie beside the checkout")
def test_real_responses_are_judged_as_by_lm_eval(monkeypatch):
    """Without its downloads: sentences are counted by our rules in both, words are cut by nltk in lm-eval only."""
    nltk = pytest.importorskip("nltk")
    pytest.importorskip("langdetect")
    pytest.importorskip("lm_eval")
    from nltk.tokenize import NLTKWordTokenizer

    monkeypatch.setattr(nltk.data, "find", lambda *_: None)
    util = importlib.import_module("lm_eval.tasks.ifeval.instructions_util")
    peer = importlib.import_module("lm_eval.tasks.ifeval.utils")
    monkeypatch.setattr(util, "count_sentences", count_sentences)
    monkeypatch.setattr(util.nltk, "word_tokenize", NLTKWordTokenizer().tokenize)
    questions = {q.prompt: q for q in TASK.read(EVAL, 0).items if isinstance(q, Question)}
    rows = {row["prompt"]: row for row in _rows("input_data.jsonl")}
    n_prompts, kinds, wrong = set(), set(), []
    for name in ("responses_deepseek67B.jsonl.gz", "responses_chatglm.jsonl.gz"):
        for given in _rows(name):
            question = questions.get(given["prompt"])
            if question is None:
                continue  # of the first release of the prompts
            instructions.language_of(ENGLISH)  # seeds the detector for both
            row = rows[question.prompt]
            row = {**row, "kwargs": [{k: v for k, v in given.items() if v} for given in row["kwargs"]]}
            found = peer.process_results(row, [given["response"]])
            strict, loose = judge(question, given["response"])
            pairs = [(strict, found["inst_level_strict_acc"]), (loose, found["inst_level_loose_acc"])]
            wrong += [(question.id, question.gold, ours, theirs) for ours, theirs in pairs if ours != theirs]
            n_prompts.add(question.id)
            kinds |= {kind for kind, _ in question.gold}
    assert wrong == []
    assert len(n_prompts) == 156 and len(kinds) >= 20


def _rows(name):
    path = EVAL / "ifeval" / name
    return [row for _, row in json_lines(path)]
