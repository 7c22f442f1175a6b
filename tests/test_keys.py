"""Schemas, pages and messages of recipes: all keys are there, with a meaning, and what does not fit is refused."""

import dataclasses
import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from places import ROOT

import isoflop
from isoflop.cli.main import main
from isoflop.errors import RecipeError
from isoflop.keys import KINDS, kind_of, recipe_of, sections, stored_schema, write_all
from isoflop.recipe import from_tree, read_tree

PRESETS = Path(isoflop.__file__).parent / "presets"
FILES = sorted([*(ROOT / "recipes").rglob("*.toml"), *PRESETS.rglob("*.toml")])


def test_schemas_and_pages_are_those_of_the_code():
    for path, text in write_all(ROOT):
        assert path.read_text(encoding="utf-8") == text, f"{path} is old: make keys"


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_shipped_recipe_names_its_schema_and_validates_against_it(path):
    named = re.match(r"#:schema (\S+)\n", path.read_text(encoding="utf-8"))
    assert named, "the first line names the schema for editors"
    schema = json.loads((path.parent / named[1]).read_text(encoding="utf-8"))
    assert schema == stored_schema(kind_of(path))
    jsonschema.Draft202012Validator.check_schema(schema)
    tree = read_tree(path)
    jsonschema.validate(tree, schema)
    with pytest.raises(jsonschema.ValidationError, match="Additional properties"):
        jsonschema.validate({**tree, "nonsense": 1}, schema)


def keys_of(section: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(header of the section, key) of a dataclass and all in it, by the types alone."""
    for field in dataclasses.fields(section):
        hint = typing.get_type_hints(section)[field.name]
        inner = [part for part in parts_of(hint) if dataclasses.is_dataclass(part)]
        for part in inner:
            yield from keys_of(typing.cast(type, part), f"{prefix}{field.name}.")
        if not inner:
            yield prefix.rstrip("."), field.name


def parts_of(hint: Any) -> list[Any]:
    return [hint, *(part for each in typing.get_args(hint) for part in parts_of(each))]


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_stands_on_the_page_with_a_meaning_and_what_it_may_be(kind):
    page = (ROOT / "docs" / "keys" / f"{kind}.md").read_text(encoding="utf-8")
    rows: dict[str, dict[str, list[str]]] = {"": {}}
    for line in page.splitlines():
        if heading := re.fullmatch(r"## `\[+(.*?)\]+`", line):
            rows[heading[1]] = {}
        elif row := re.fullmatch(r"\| `(\w+)` \| (.*) \|", line):
            rows[[*rows][-1]][row[1]] = re.split(r" (?<!\\)\| ", row[2])
    for header, key in keys_of(recipe_of(kind)):
        if (name := f"{header}.{key}".lstrip(".")) in WRITTEN.get(kind, set()):
            assert name in rows
            continue
        meaning, _, allowed, default, _ = rows[header][key]
        assert len(meaning) > 5 and allowed, f"{header}.{key}"
        assert default or "out" in page, f"{header}.{key}"


WRITTEN = {
    "sweep": {"validate", "checkpoint", "train.balance", "train.mtp", "numerics.photonic.core"},
    "pretrain": {"numerics.photonic.core"},
    "extend": {"numerics.photonic.core"},
    "sft": {"numerics.photonic.core"},
    "dpo": {"numerics.photonic.core"},
    "reward": {"numerics.photonic.core"},
}
"""Sections that are kept as they are written: the rules between keys check them."""


class Places:
    """The sections of a kind, each with what makes a whole recipe of its keys."""

    def __init__(self, schema: dict[str, Any], without: set[str]):
        self.schema, self.inner, self.without = schema, schema["$defs"], without

    def section(self, found: dict[str, Any]) -> dict[str, Any] | None:
        reference = found.get("$ref") or found.get("items", {}).get("$ref", "")
        return self.inner.get(reference.rpartition("/")[2])

    def needed(self, section: dict[str, Any]) -> dict[str, Any]:
        """Values for the keys that a section must have."""
        tree = {}
        for name in section.get("required", ()):
            found = section["properties"][name]
            kind = {"integer": max(2, found.get("minimum", 2)), "number": 0.5, "string": "x", "array": [], "object": {}}
            inner = self.section(found) if "$ref" in found else None
            tree[name] = self.needed(inner) if inner else found["enum"][0] if "enum" in found else kind[found["type"]]
        return tree

    def all(self, schema=None, whole=lambda tree: tree, path="") -> Iterator[tuple[str, Any, dict[str, Any]]]:
        schema = schema or self.schema
        yield path, whole, schema
        for name, found in schema["properties"].items():
            inner, below = self.section(found), f"{path}.{name}".lstrip(".")
            if inner and below not in self.without:
                several = "items" in found

                def outer(tree, *, name=name, several=several):
                    return whole({**self.needed(schema), name: [tree] if several else tree})

                yield from self.all(inner, outer, below + "[0]" * several)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_key_type_and_range_in_each_section_gives_one_message_of_four_parts(kind):
    places, recipe = Places(stored_schema(kind), WRITTEN.get(kind, set())), recipe_of(kind)

    def refused(tree: Any) -> str:
        with pytest.raises(RecipeError) as caught:
            from_tree(tree, recipe)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    seen = 0
    for path, whole, section in places.all():
        dot = f"{path}." if path else ""
        base = places.needed(section)
        message = refused(whole({**base, "qqq": 1}))
        assert message.startswith(f"unknown key {dot}qqq; ") and "known keys: " in message
        for name, found in section["properties"].items():
            kinds = {"integer": ("1.5", 1.5), "number": ("'x'", "x"), "string": ("3", 3), "boolean": ("1", 1)}
            kind = found["type"][0] if isinstance(found.get("type"), list) else found.get("type")
            if kind in kinds and "enum" not in found:
                shown, wrong = kinds[kind]
                message = refused(whole({**base, name: wrong}))
                assert message.startswith(f"{dot}{name} = {shown} must be ") and len(message.split(" must be ")[1]) > 3
                seen += 1
            low = found.get("minimum", found.get("exclusiveMinimum"))
            if low is not None:
                message = refused(whole({**base, name: low - 1}))
                assert re.match(rf"{re.escape(dot + name)} = \S+ must be (at least|above) ", message), message
                assert "default" not in found or f"; the default is {found['default']}" in message
                seen += 1
            if "enum" in found:
                message = refused(whole({**base, name: f"{found['enum'][0]}x"}))
                assert "must be one of" in message and f"did you mean {found['enum'][0]!r}?" in message
    assert seen > 8


def test_a_number_of_things_has_no_unit_of_theirs():
    units = {key.name: key.unit for kind in KINDS for part in sections(stored_schema(kind)) for key in part.keys}
    shown = [units[name] for name in ("n_budgets", "k", "n_sizes", "budgets", "n_tokens")]
    assert shown == ["", "", "", "FLOPs", "tokens"]


def test_sections_name_each_header_once():
    for kind in KINDS:
        headers = [section.header for section in sections(stored_schema(kind))]
        assert len(headers) == len(set(headers)), kind


def test_the_command_prints_what_the_page_says(capsys):
    main(["keys", "train.balance"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "# pretrain" in printed and printed.count("[train.balance]") >= 2  # a sweep has it in other words
    (section,) = (part for part in sections(stored_schema("pretrain")) if part.header == "[train.balance]")
    for key in section.keys:
        assert f"{key.name}: {key.meaning} {key.allowed}" in printed and f"default {key.default}" in printed
    main(["keys"])
    listed = capsys.readouterr().out
    assert all(re.search(rf"^  {kind} +\[", listed, re.M) for kind in KINDS)


def test_the_command_writes_schemas(capsys, tmp_path):
    main(["schema", "tokens"])
    assert json.loads(capsys.readouterr().out) == stored_schema("tokens")
    main(["schema", "--out", str(tmp_path)])
    assert {path.stem for path in tmp_path.iterdir()} == set(KINDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["keys", "train.balanc"],
            "train.balanc is no kind of recipe and no section of one; did you mean train.balance?",
        ),
        (["schema", "token"], "token is no kind of recipe; did you mean tokens?"),
        (["schema"], "isoflop schema needs KIND"),
    ],
)
def test_another_name_is_refused_with_the_nearest(arguments, message, refused):
    assert message in refused(*arguments)
