"""Short answers: what counts as equal, where outputs are cut, which number and which box is the last."""

from fractions import Fraction

import pytest

from isoflop.evaluation.tasks.answers import cut, is_any, last_box, last_number, number
from isoflop.evaluation.tasks.math import equal, extract


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", 72),
        (" -3.50 ", Fraction(-7, 2)),
        ("$1,234.5", Fraction(2469, 2)),
        ("1,000,000", 1_000_000),
        ("50%", Fraction(1, 2)),
        ("50\\%", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        ("\\frac{-3}{4}", Fraction(-3, 4)),
        ("12.", 12),
        (".5", Fraction(1, 2)),
        ("0,1", None),
        ("1,23", None),
        ("1,2345", None),
        ("1/0", None),
        ("2017+1", None),
        ("1e10", None),
        ("", None),
        ("9" * 200, None),
    ],
)
def test_numbers_are_exact_or_none(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    ("text", "found"),
    [("from 3 to 12 apples.", "12"), ("x = -4.5", "-4.5"), ("1,234 and", "1,234"), ("no", ""), ("5/8 left", "5/8")],
)
def test_last_number(text, found):
    assert last_number(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\\boxed{71} no, \\boxed{72}", "72"),
        ("$\\boxed{\\frac{1}{2}}$ and {more}", "\\frac{1}{2}"),
        ("\\boxed 5$ more", "5"),
        ("\\fbox{x}", "x"),
        ("\\boxed{open", None),
        ("none", None),
    ],
)
def test_last_box_wins_with_balanced_braces(text, found):
    assert last_box(text) == found


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("\\frac{1}{2}", "\\dfrac12", True),
        ("\\frac{1}{2}", "0.5", True),
        ("90^\\circ", "90", True),
        ("\\text{Monday}", "Monday", True),
        ("12\\text{ cm}", "12", True),
        ("x=5", "5", True),
        ("\\left(1, 2\\right)", "(1,2)", True),
        ("(1,2)", "[1,2]", False),
        ("0,1", "1", False),
        ("1331 and 1728", "1728", False),
        ("1/2^{99}", "1/2^{98}", False),
        ("2018", "2017+1", False),
        ("72", "", False),
        ("", "", False),
    ],
)
def test_answers_of_math(gold, answer, right):
    assert equal(gold, answer) is right


def test_the_sentence_counts_where_there_is_no_box():
    assert extract("So. Final Answer: The final answer is $7$. I hope it is correct.") == "7"
    assert extract("So. Final Answer: The final answer is $7$. I hope it is correct. Problem:\n\\boxed{8}") == "7"
    assert extract("nothing") == ""


def test_outputs_are_cut_at_the_first_stop():
    assert cut("one\ntwo. three", (".", "\n")) == "one" and cut("one", ("\n",)) == "one"


def test_case_and_punctuation_do_not_count():
    assert is_any("THE  Beatles!", ["the  beatles"]) and not is_any("Beatles", ["the Beatles"])
    assert is_any("Beatles", ["the Beatles"], (r"\bthe ",))
