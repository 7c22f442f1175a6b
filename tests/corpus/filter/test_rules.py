"""Known answers of the published rules, one document per rule."""

import numpy as np
import pytest

from isoflop.corpus.filter.c4 import C4Options, c4, sentence_ends
from isoflop.corpus.filter.code import CodeOptions, code
from isoflop.corpus.filter.fineweb import FinewebOptions, fineweb
from isoflop.corpus.filter.gopher import (
    Finding,
    GopherQualityOptions,
    GopherRepetitionOptions,
    gopher_quality,
    gopher_repetition,
)
from isoflop.corpus.filter.text_block import TextBlock

PROSE = (
    "The committee met on Tuesday to discuss the plan, and most of its members spoke in favour of it. "
    "Nobody had expected that the vote would be taken at once; still, the chair asked for hands, counted them twice, "
    "and declared with visible relief that the proposal had been carried. Outside, rain fell on the empty square."
)
ZH = (
    "\u59d4\u5458\u4f1a\u661f\u671f\u4e8c\u5f00\u4f1a\uff0c\u8ba8\u8bba\u4e86\u8fd9\u4e2a\u8ba1\u5212\u3002\u5927\u591a\u6570"
    "\u6210\u5458\u90fd\u8868\u793a\u8d5e\u6210\uff0c\u6ca1\u6709\u4eba\u60f3\u5230\u4f1a\u7acb\u523b\u8868\u51b3\u3002\u4e3b"
    "\u5e2d\u8bf7\u5927\u5bb6\u4e3e\u624b\uff0c\u6570\u4e86\u4e24\u904d\uff0c\u7136\u540e\u5ba3\u5e03\u8bae\u6848\u901a\u8fc7\u4e86\u3002"
)


def _dropped(findings: list[Finding], doc: int = 0) -> set[str]:
    return {finding.rule for finding in findings if finding.drop[doc]}


def _value(findings: list[Finding], rule: str, doc: int = 0) -> float:
    return next(float(finding.value[doc]) for finding in findings if finding.rule == rule)


def test_plain_prose_breaks_no_rule() -> None:
    for text, lang in ((PROSE, "en"), (ZH, "zh")):
        block = TextBlock([text])
        findings = gopher_quality(block, GopherQualityOptions(), lang) + fineweb(block, FinewebOptions())
        findings += gopher_repetition(block, GopherRepetitionOptions())
        assert not _dropped(findings), text
        assert not _dropped(c4(block, C4Options())[0])


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("too short", "gopher_few_words"),
        ("a " * 100_001, "gopher_many_words"),
        ("I am on to it as is he or so we go up " * 9, "gopher_short_words"),
        ("internationalisation counterrevolutionary the of " * 20, "gopher_long_words"),
        (PROSE + " # #" * 10, "gopher_hashes"),
        (PROSE + " one... two\u2026" * 8, "gopher_ellipses"),
        ("\n".join(f"- {word} the of and" for word in PROSE.split()), "gopher_bullet_lines"),
        ("\n".join(f"{word} the of and..." for word in PROSE.split()), "gopher_ellipsis_lines"),
        (PROSE + " 12 34" * 20, "gopher_few_letters"),
        ("wolves hunt deer near frozen rivers " * 10, "gopher_stop_words"),
    ],
)
def test_each_gopher_quality_rule_drops_what_it_is_for(text: str, rule: str) -> None:
    assert rule in _dropped(gopher_quality(TextBlock([PROSE, text]), GopherQualityOptions(), "en"), 1)


def test_gopher_quality_values_are_those_counted_by_hand() -> None:
    block = TextBlock(["One two, three... # four\n- five 6 ...\n\nthe end of it\u2026"])
    found = gopher_quality(block, GopherQualityOptions(), "en")
    # chunks: One two, three... # four - five 6 ... the end of it...  = 13, of them words: 10
    assert _value(found, "gopher_few_words") == 10
    assert _value(found, "gopher_short_words") == pytest.approx((3 + 4 + 8 + 4 + 4 + 1 + 3 + 3 + 2 + 3) / 10)
    assert _value(found, "gopher_hashes") == pytest.approx(1 / 13)
    assert _value(found, "gopher_ellipses") == pytest.approx(3 / 13)
    assert _value(found, "gopher_bullet_lines") == pytest.approx(1 / 3)
    assert _value(found, "gopher_ellipsis_lines") == pytest.approx(2 / 3)
    assert _value(found, "gopher_few_letters") == pytest.approx(9 / 13)
    assert _value(found, "gopher_stop_words") == 2


def _by_definition(words: list[str], n: int) -> int:
    """Characters of words in runs of n that occurred before, each word once."""
    seen, covered = set(), set()
    for i in range(len(words) - n + 1):
        run = tuple(words[i : i + n])
        if run in seen:
            covered |= set(range(i, i + n))
        seen.add(run)
    return sum(len(words[i]) for i in covered)


@pytest.mark.parametrize("seed", range(5))
def test_repetition_values_are_those_of_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(4):
        words = [f"w{i}" for i in rng.integers(0, 30, 60)]
        start = int(rng.integers(0, 40))
        words += words[start : start + int(rng.integers(4, 20))]
        texts.append(" ".join(words))
    found = gopher_repetition(TextBlock(texts), GopherRepetitionOptions())
    for doc, text in enumerate(texts):
        words = text.split()
        for n in range(5, 11):
            expected = _by_definition(words, n) / len(text)
            assert _value(found, f"gopher_duplicate_{n}gram", doc) == pytest.approx(expected)
        for n in (2, 3, 4):
            runs = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
            most = max(map(runs.count, runs))
            best = max(len(run) * most for run in runs if runs.count(run) == most) if most > 1 else 0
            assert _value(found, f"gopher_top_{n}gram", doc) == pytest.approx(best / len(text))


def test_repeated_lines_and_paragraphs_are_counted_without_their_first_occurrence() -> None:
    text = "aaaa\nbb\n\naaaa\nbb\n\ncc\naaaa"
    found = gopher_repetition(TextBlock([text]), GopherRepetitionOptions())
    assert _value(found, "gopher_duplicate_lines") == pytest.approx(3 / 6)
    assert _value(found, "gopher_duplicate_line_chars") == pytest.approx(10 / len(text))
    assert _value(found, "gopher_duplicate_paragraphs") == pytest.approx(1 / 3)
    assert _value(found, "gopher_duplicate_paragraph_chars") == pytest.approx(7 / len(text))


def test_fineweb_values_are_those_counted_by_hand() -> None:
    long = "This line is longer than thirty characters"
    text = f"{long}.\nshort\n{long}.\n\nshort\n"
    found = fineweb(TextBlock([text]), FinewebOptions())
    assert _value(found, "fineweb_unpunctuated_lines") == pytest.approx(2 / 4)
    assert _value(found, "fineweb_short_lines") == pytest.approx(2 / 4)
    assert _value(found, "fineweb_duplicate_lines") == pytest.approx((len(long) + 1 + 5) / (len(text) - 5))
    assert _value(found, "fineweb_list") == pytest.approx(5 / 18)  # 16 words and 2 full stops
    assert _dropped(found) == {"fineweb_duplicate_lines"}


def test_c4_removes_lines_and_drops_pages_as_published() -> None:
    keep = "This is a line that stays in the page."
    page = "\n".join(
        [
            keep,
            "This line has no end sign",
            "Too short a line.",
            "This line trails off at the end...",
            "Please enable JavaScript to read this page.",
            "We have a new Privacy Policy for all of you.",
            "One word of this line is " + "x" * 1001 + ".",
            "According to a paper[12] this was so[citation needed].",
            '  "A quotation is fine as well, she said"  ',
        ]
    )
    findings, texts, removed = c4(TextBlock([page, keep]), C4Options())
    assert texts[0] == "\n".join([keep, "According to a paper this was so.", '"A quotation is fine as well, she said"'])
    assert removed.tolist() == [6, 0]
    assert _dropped(findings, 0) == set()
    assert _dropped(findings, 1) == {"c4_few_sentences"}
    code_page, latin = f"{PROSE} {{}}.", f"{PROSE} Lorem Ipsum dolor."
    findings = c4(TextBlock([code_page, PROSE, latin]), C4Options())[0]
    assert [_dropped(findings, doc) for doc in range(3)] == [{"c4_curly_bracket"}, set(), {"c4_lorem_ipsum"}]


def test_sentences_end_where_a_reader_ends_them() -> None:
    text = 'He paid 3.50 pounds. "Why?" she asked... No! \u4e2d\u6587\u3002\u5b57\uff1f'
    block = TextBlock([text])
    assert block.count_chars(sentence_ends(block)).tolist() == [6]


@pytest.mark.parametrize(
    ("text", "origin", "rule"),
    [
        ("x = 1\n" * 20 + "y" * 1001, "a.py", "code_long_line"),
        (("y" * 120 + "\n") * 5, "a.py", "code_mean_line"),
        ("(){}[]<>;;\n" * 9 + "ab", "a.c", "code_few_letters"),
        ("# Code generated by protoc. DO NOT EDIT.\nx = 1", "a.py", "code_generated"),
        ("x = 1", "dist/app.min.js", "code_generated"),
        ("x = 1", "api/thing_pb2.py#3", "code_generated"),
        ("def f(x):\n    return x + 1\n", "a.py", ""),
    ],
)
def test_each_rule_for_code_drops_what_it_is_for(text: str, origin: str, rule: str) -> None:
    assert _dropped(code(TextBlock([text]), [origin], CodeOptions())) == ({rule} if rule else set())
