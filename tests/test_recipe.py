"""Recipes: typed, closed against unknown keys, overridable, and written back without loss."""

import json
import math
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.errors import RecipeError
from isoflop.recipe import (
    NotNegative,
    Positive,
    PositiveInt,
    Range,
    Seed,
    check_ranges,
    from_tree,
    load_recipe,
    read_tree,
    to_toml,
    to_tree,
    write_json,
    write_recipe,
    write_text,
)


@dataclass(frozen=True)
class Oven:
    degrees: int
    name: str = "oven"
    fan: bool = False
    factor: float = 1.0
    mode: Literal["bake", "grill"] = "bake"


@dataclass(frozen=True)
class Meal:
    oven: Oven
    times: tuple[float, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    out: Path = Path("out")
    note: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


TREE = {"oven": {"degrees": 200}}


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_with_overrides_becomes_frozen_dataclasses(tmp_path):
    path = written(tmp_path / "meal.toml", "times = [1, 2.5]\n[oven]\ndegrees = 180\n[weights]\nsalt = 1\n")
    meal = load_recipe(path, Meal, ["oven.degrees=2e2", "oven.mode=grill", "out=some/where", "oven.fan=true"])
    assert meal.oven == Oven(200, fan=True, mode="grill") and isinstance(meal.oven.degrees, int)
    assert meal.times == (1.0, 2.5) and meal.weights == {"salt": 1.0} and meal.out == Path("some/where")
    with pytest.raises(AttributeError):
        meal.note = "x"  # type: ignore[misc]


def test_an_override_may_be_a_list_or_make_a_section():
    meal = load_recipe(None, Meal, ["oven.degrees=1", "times=[1, 2]", "weights.salt=0.5", 'note="a b"'])
    assert (meal.times, meal.weights, meal.note) == ((1.0, 2.0), {"salt": 0.5}, "a b")


@pytest.mark.parametrize(
    "tree, message",
    [
        ({**TREE, "ovn": {}}, "unknown key ovn; did you mean oven?"),
        ({"oven": {"degrees": 1, "degres": 2}}, "unknown key oven.degres; did you mean oven.degrees?"),
        ({**TREE, "zzz": 1}, "unknown key zzz; known keys: extra, note, out, oven, times, weights"),
        ({"oven": {}}, "missing key oven.degrees; it has no default: add it to the recipe"),
        ({}, "missing key oven.degrees"),
        ({"oven": 3}, "oven = 3 must be a section with keys"),
        ({"oven": {"degrees": "hot"}}, "oven.degrees = 'hot' must be a whole number"),
        ({"oven": {"degrees": 1.5}}, "oven.degrees = 1.5 must be a whole number"),
        ({"oven": {"degrees": True}}, "oven.degrees = True must be a whole number"),
        ({"oven": {"degrees": 1e300}}, "oven.degrees = 1e+300 must be a whole number below 2^63"),
        ({"oven": {"degrees": 1, "fan": 1}}, "oven.fan = 1 must be true or false"),
        ({"oven": {"degrees": 1, "factor": "x"}}, "oven.factor = 'x' must be a number"),
        ({"oven": {"degrees": 1, "mode": "gril"}}, "must be one of bake, grill; did you mean 'grill'?"),
        ({**TREE, "times": 3}, "times = 3 must be a list"),
        ({**TREE, "times": [1, "a"]}, "times[1] = 'a' must be a number"),
        ({**TREE, "weights": {"salt": "a"}}, "weights.salt = 'a' must be a number"),
    ],
)
def test_what_does_not_fit_is_refused_with_key_value_and_rule(tree, message):
    with pytest.raises(RecipeError) as refused:
        from_tree(tree, Meal)
    assert message in str(refused.value)


@dataclass(frozen=True)
class Dough:
    eggs: PositiveInt = 3
    water: Annotated[float, Range(at_least=0.2, below=1)] = 0.6
    rest_s: Positive | None = None
    parts: tuple[NotNegative, ...] = ()
    shares: dict[str, Annotated[float, Range(above=0, at_most=1)]] = field(default_factory=dict)
    oldest_s: Annotated[float, Range(above=0, finite=False)] = math.inf
    seed: Seed = 0
    spice: float = 0.0


@dataclass(frozen=True)
class Bread:
    dough: Dough = Dough()
    loaves: tuple[Dough, ...] = ()


@pytest.mark.parametrize(
    "dough, message",
    [
        ({"eggs": 0}, "dough.eggs = 0 must be at least 1; the default is 3"),
        ({"water": 1}, "dough.water = 1 must be at least 0.2 and below 1; the default is 0.6"),
        ({"water": 0.1}, "dough.water = 0.1 must be at least 0.2"),
        ({"water": math.nan}, "dough.water = nan must be at least 0.2 and below 1"),
        ({"rest_s": 0}, "dough.rest_s = 0 must be above 0"),
        ({"rest_s": math.inf}, "dough.rest_s = inf must be above 0 and finite"),
        ({"parts": [1, -1]}, "dough.parts[1] = -1 must be at least 0"),
        ({"shares": {"rye": 1.5}}, "dough.shares.rye = 1.5 must be above 0 and at most 1"),
        ({"seed": 2**40}, "dough.seed = 1099511627776 must be at least 0 and at most 4,294,967,295; the default is 0"),
        ({"spice": math.nan}, "dough.spice = nan must be a finite number; the default is 0.0"),
    ],
)
def test_a_number_out_of_its_range_is_refused_read_or_built(dough, message):
    with pytest.raises(RecipeError) as refused:
        from_tree({"dough": dough}, Bread)
    assert str(refused.value).startswith(message)
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in dough.items()}
    with pytest.raises(RecipeError) as built:
        check_ranges(Bread(loaves=(Dough(), Dough(**values))))
    assert str(built.value).startswith(message.replace("dough.", "loaves[1].").split(" =")[0])


def test_numbers_at_the_edge_of_their_range_pass():
    edges = {"eggs": 1, "water": 0.2, "parts": [0], "shares": {"rye": 1.0}, "seed": 2**32 - 1, "spice": -math.inf}
    assert from_tree({"dough": edges}, Bread).dough.oldest_s == math.inf
    check_ranges(Bread(loaves=(Dough(rest_s=None), Dough(rest_s=1e-9))), "bread.")


@pytest.mark.parametrize(
    "override, message", [("oven", "must read section.key=value"), ("oven.degrees.x=1", "is a value, not a section")]
)
def test_an_override_that_cannot_be_read_is_refused(tmp_path, override, message):
    path = written(tmp_path / "meal.toml", "[oven]\ndegrees = 180\n")
    with pytest.raises(RecipeError, match=message):
        load_recipe(path, Meal, [override])


def test_a_mistyped_name_of_a_file_gets_the_nearest_one(tmp_path):
    written(tmp_path / "deep-7b.toml", "")
    with pytest.raises(RecipeError, match=r"deep_7b.toml does not exist; did you mean .*deep-7b.toml\?"):
        load_recipe(tmp_path / "deep_7b.toml", Meal)
    with pytest.raises(RecipeError, match="is a folder; give the path of a TOML file"):
        load_recipe(tmp_path, Meal)


def test_a_file_that_is_missing_or_not_toml_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="does not exist; give the path of a TOML file"):
        load_recipe(tmp_path / "none.toml", Meal)
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_recipe(written(tmp_path / "bad.toml", "a = = 1"), Meal)
    (tmp_path / "latin.toml").write_bytes(b'note = "caf\xe9"\n')
    with pytest.raises(RecipeError, match="is not UTF-8 at byte 11; save it as UTF-8"):
        load_recipe(tmp_path / "latin.toml", Meal)


PLAIN = st.recursive(
    st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), PLAIN, max_size=4))
def test_what_is_written_is_read_back(tree):
    assert tomllib.loads(to_toml(tree)) == tree


def test_a_recipe_survives_being_written_and_read(tmp_path):
    meal = Meal(Oven(200, name='a "b" \\ \u00e9'), times=(1.0, 1e-8), weights={"x y": 0.5}, note=None)
    write_recipe(tmp_path / "deep" / "meal.toml", meal, header="first\n\nsecond")
    text = (tmp_path / "deep" / "meal.toml").read_text(encoding="utf-8")
    assert text.startswith("# first\n#\n# second\n")
    assert load_recipe(tmp_path / "deep" / "meal.toml", Meal) == meal
    assert "note" not in to_tree(meal)  # TOML has no null


def test_json_is_plain_whatever_comes_in(tmp_path):
    value = {
        "array": np.arange(3),
        "scalar": np.float32(0.5),
        "path": Path("a/b"),
        "nan": math.nan,
        "inf": np.inf,
        "meal": Oven(1),
        1: (True, None),
    }
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    read = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert read["array"] == [0, 1, 2] and read["scalar"] == 0.5 and read["path"] == "a/b"
    assert read["nan"] is None and read["inf"] is None and read["1"] == [True, None]
    assert read["meal"]["degrees"] == 1


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def fail(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no"):
        write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old" and [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_a_device_or_a_pipe_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RecipeError, match="pipe is a device or a pipe, which a file would replace"):
        write_json(tmp_path / "pipe", {})
    assert (tmp_path / "pipe").is_fifo() and [p.name for p in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 5000], ids=["digits", "lists"])
def test_values_that_the_parser_of_toml_gives_up_on_are_refused(tmp_path, value):
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_recipe(written(tmp_path / "r.toml", f"[oven]\ndegrees = {value}\n"), Meal)
    with pytest.raises(RecipeError, match="must be a whole number") as refused:
        load_recipe(None, Meal, [f"oven.degrees={value}"])
    assert len(str(refused.value)) < 300


WINDOWS = {
    "line ends": lambda text: text.replace("\n", "\r\n").encode(),
    "a mark": lambda text: text.encode("utf-8-sig"),
    "a mark and line ends": lambda text: text.replace("\n", "\r\n").encode("utf-8-sig"),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16, the other order": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
}


@pytest.mark.parametrize("case", WINDOWS)
def test_recipes_saved_by_editors_of_windows_are_read(tmp_path, case):
    (tmp_path / "r.toml").write_bytes(WINDOWS[case]('title = "caf\u00e9"\n[train]\nseed = 3\n'))
    assert read_tree(tmp_path / "r.toml") == {"title": "caf\u00e9", "train": {"seed": 3}}
