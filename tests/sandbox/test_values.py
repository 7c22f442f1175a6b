"""Values cross unchanged, as plain types, or not at all."""

import math
from collections import Counter, OrderedDict, namedtuple
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.sandbox.values import ValueRefused, decode, encode, frame, parse, same, split_frames

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.just(-1.5j),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)  # fmt: skip


@given(plain)
def test_plain_values_come_back_equal_and_of_the_same_types(value):
    (tree,) = split_frames(frame(encode(value)))
    found = decode(tree)
    assert repr(found) == repr(value) and same(value, found)


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        frozenset("ab"),
        -0.0,
        math.inf,
        10**6000,
        Decimal("1.10"),
        Fraction(1, 3),
        bytearray(b"x"),
        range(1, 9, 2),
        int,
        "\ud800",
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_values_come_back(value):
    found = decode(parse(frame(encode(value))[4:]))
    assert type(found) is type(value) and same(value, found)
    assert not isinstance(value, float) or math.copysign(1, found) == math.copysign(1, value)


class Color(IntEnum):
    RED = 3


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(a=1), {"a": 1}),
        (namedtuple("P", "x y")(1, 2), (1, 2)),
        (Color.RED, 3),
        (True, True),
        ({"a": 1}.keys(), {"a"}),
    ],
)
def test_subclasses_become_the_plain_type(value, becomes):
    found = decode(encode(value))
    assert found == becomes and type(found) is type(becomes)


@pytest.mark.parametrize(
    "tree",
    [["x", 1], [], ["i"], ["i", "z"], ["f", "y"], {"a": 1}, ["l", 3], ["d", [[1]]], ["d", [[["l", []], 1]]], 1.5,
     ["s", [["l", []]]],
     ["F", "1e999999999"], ["F", "1/0"], ["D", "x"], ["T", "object"], ["o", 1, "thing"], ["c", "0x1p0"], [["l"], 1]],
)  # fmt: skip
def test_other_json_is_refused(tree):
    with pytest.raises(ValueRefused):
        decode(tree)


@pytest.mark.parametrize("data", [b"[" * 100_000, b"", b"{", b"\xff", b"1" * 5000])
def test_bytes_that_are_no_frame_are_refused(data):
    with pytest.raises(ValueRefused):
        split_frames(len(data).to_bytes(4, "big") + data)


def test_deep_values_are_refused_on_both_sides():
    deep: list = []
    tree: list = ["l", []]
    for _ in range(300):
        deep, tree = [deep], ["l", [tree]]
    for work in (lambda: encode(deep), lambda: decode(tree)):
        with pytest.raises(ValueRefused, match="nested more than 200 levels deep"):
            work()


@pytest.mark.parametrize(
    ("expected", "found", "tolerance", "equal"),
    [
        (1, 1.0, 0, True),
        (1, True, 0, False),
        (True, 1, 0, False),
        (True, True, 0, True),
        ([1], (1,), 0, False),
        ("1", 1, 0, False),
        (math.nan, math.nan, 0, True),
        (1.0, 1.0 + 1e-9, 0, False),
        (1.0, 1.0 + 1e-9, 1e-6, True),
        (1, 2, 1.5, False),  # integers are exact
        (10**400, 1.0, 1e-6, False),
        ({"a": 1.0}, {"a": 1.0 + 1e-9}, 1e-6, True),
        ({"a": 1}, {"b": 1}, 0, False),
        ({1, 2}, {2, 1}, 0, True),
        ([1, [2]], [1, [2, 3]], 0, False),
        (None, 0, 0, False),
        (b"x", bytearray(b"x"), 0, False),
    ],
)
def test_equality_compares_types_and_content(expected, found, tolerance, equal):
    assert same(expected, found, tolerance) is equal
