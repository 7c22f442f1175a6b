import base64
import random

import pytest

from isoflop.corpus.read.clean import CleanOptions, normalise, reason_to_drop

PROSE = "A sentence that a person wrote, with a few words in it, and then another one.\n"


def test_normalise_unifies_line_breaks_and_accents_and_leaves_the_rest() -> None:
    assert normalise("\ufeffa\r\nb\rc\n  d\t\u00a0") == "a\nb\nc\n  d\t\u00a0"
    assert normalise("e\u0301") == "\u00e9"
    assert normalise("e\u0301", "none") == "e\u0301"


@pytest.mark.parametrize(
    ("text", "domain", "reason"),
    [
        (PROSE * 3, "prose", None),
        ("\u4e2d\u6587\u53e5\u5b50\uff0c\u4e00\u4e2a\u63a5\u4e00\u4e2a\u3002" * 10, "prose", None),
        ("def f(x):\n    return x ** 2  # squares\n" * 3, "code", None),
        ("short", "prose", "too_short"),
        ("1.0, 2.5, -3.7; " * 50, "prose", "few_letters"),
        ("text\x00with\x01zeros " * 20, "prose", "not_text"),
        ("data = '" + base64.b64encode(random.Random(1).randbytes(3000)).decode() + "'", "code", "encoded_data"),
        ("var a = function(b) {return b}; " * 100, "code", "minified"),
        ("# This file was automatically generated\n" + "x = call(one, two)\n" * 5, "code", "generated"),
        ("# This file was automatically generated\n" + PROSE * 5, "prose", None),
        ("the same line as always here\n" * 30, "prose", "repeated_lines"),
    ],
)
def test_each_rule_drops_what_it_is_for(text: str, domain: str, reason: str | None) -> None:
    assert reason_to_drop(text, domain, CleanOptions()) == reason


def test_rules_can_be_relaxed() -> None:
    assert reason_to_drop("short", "prose", CleanOptions(min_chars=1)) is None
    generated = "# do not edit\n" + "x = call(one, two)\n" * 5
    assert reason_to_drop(generated, "code", CleanOptions(drop_generated=False)) is None
