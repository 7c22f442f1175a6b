"""What every key of every kind of recipe means: JSON Schemas for editors, and the pages that people read.

Dataclasses in, one schema of each kind out (`schema_of`): types and ranges by pydantic, meanings from the string under
each field, examples from shipped recipes. Pages and `isoflop keys` are drawn from the schemas, so that nothing is said
twice. The schemas lie in isoflop/schemas, the pages in docs/keys; `make keys` writes both, a test compares.
"""

import ast
import dataclasses
import inspect
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module, resources
from pathlib import Path
from typing import Any, NamedTuple, get_args

from isoflop.errors import RecipeError
from isoflop.recipe import WrittenAs, from_tree, hints_of, read_tree, to_tree, typed, write_text

KINDS = {
    "corpus": "isoflop.corpus.recipe.CorpusRecipe",
    "tokens": "isoflop.tokens.shards.TokensRecipe",
    "sweep": "isoflop.scaling.sweep.recipe.LadderRecipe",
    "pretrain": "isoflop.training.pretrain.recipe.PretrainRecipe",
    "extend": "isoflop.training.pretrain.extend.ExtendRecipe",
    "sft": "isoflop.alignment.recipe.SftRecipe",
    "dpo": "isoflop.alignment.recipe.DpoRecipe",
    "reward": "isoflop.alignment.recipe.RewardRecipe",
    "align_demo": "isoflop.alignment.demo.DemoRecipe",
    "eval": "isoflop.evaluation.recipe.EvalRecipe",
    "judge": "isoflop.evaluation.judge.recipe.JudgeRecipe",
    "imaging": "isoflop.imaging.config.ImagingRecipe",
    "imaging_sweep": "isoflop.imaging.sweep.ImagingSweep",
    "optics": "isoflop.optics.config.CoreConfig",
}
"""In the order of the data flow. Named, not imported: some rooms import torch."""

UNITS: dict[str, str] = dict(
    re.findall(
        r"(\w+)=(\S+)",
        "s=s ms=ms hz=Hz mw=mW pj=pJ db=dB bits=bits px=pixels v=V vpp_v=V a=A k=K f=F rad=rad um=um ohm=ohm kb=kB "
        "db_per_hz=dB/Hz a_per_w=A/W a_per_rthz=A/sqrt(Hz) hours=h minutes=min budgets=FLOPs tokens=tokens mb=MB "
        "seq_len=tokens steps=steps words=words chars=characters bytes=bytes",
    )
)
"""By the last words of the name of a key."""
NO_UNIT = {"n_budgets", "k"}
"""Keys whose names end like a unit: how many budgets, the k of pass@k."""


COMMANDS = {
    **{kind: kind for kind in ("tokens", "sweep", "extend", "sft", "dpo", "reward")},
    "corpus": "corpus build",
    "pretrain": "train",
    "eval": "eval RUN",
    "judge": "judge RUN",
    "imaging": "imaging train",
    "imaging_sweep": "imaging sweep",
}
"""Kind -> the command that runs a recipe of it; others come with the package."""


class Key(NamedTuple):
    """One key of a recipe, in words."""

    name: str
    meaning: str
    unit: str
    allowed: str
    default: str
    example: str


class Section(NamedTuple):
    """One section, its header as TOML writes it; the keys at the top of a file have none."""

    header: str
    meaning: str
    keys: list[Key]


def recipe_of(kind: str) -> type:
    module, _, name = KINDS[kind].rpartition(".")
    return getattr(import_module(module), name)


def kind_of(path: Path) -> str:
    """Of a shipped recipe: its first line names its schema."""
    return Path(path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#:schema ")).stem


def kinds_of(path: Path, overrides: Sequence[str] = ()) -> list[str]:
    """The kinds that a recipe may be: that of its first line, else those with its sections, and with its keys if any.

    Raises:
        RecipeError: no file, or no TOML.
    """
    tree = read_tree(path, overrides)
    said = re.match(r"\ufeff?#:schema .*?(\w+)\.json\s", path.read_text(encoding="utf-8", errors="replace"))
    if said is not None and said[1] in KINDS:
        return [said[1]]
    schemas = {kind: stored_schema(kind) for kind in KINDS}
    alike = [
        kind
        for kind, schema in schemas.items()
        if tree.keys() <= schema["properties"].keys() and tree.keys() >= set(schema.get("required", ()))
    ]
    return [kind for kind in alike if len(alike) == 1 or _loads(tree, kind)] or alike


def _loads(tree: dict[str, Any], kind: str) -> bool:
    try:
        from_tree(tree, recipe_of(kind))
    except RecipeError:
        return False
    return True


def schema_of(kind: str, recipes: Iterable[Path] = ()) -> dict[str, Any]:
    """JSON Schema (2020-12) of one kind, with values of `recipes` as examples."""
    root = recipe_of(kind)
    definitions: dict[str, Any] = {}
    _define(root, definitions)
    for path in recipes:
        _exemplify(read_tree(path), definitions[root.__name__], definitions)
    top = definitions.pop(root.__name__)
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, **top, "title": f"isoflop {kind} recipe", "$defs": definitions}


def stored_schema(kind: str) -> dict[str, Any]:
    """The schema that the package carries."""
    return json.loads((resources.files("isoflop") / "schemas" / f"{kind}.json").read_text(encoding="utf-8"))


def sections(schema: dict[str, Any]) -> list[Section]:
    """All sections of a kind, outer before inner."""
    return list(_sections(schema, schema["$defs"], ""))


def page(kind: str, schema: dict[str, Any]) -> str:
    """Markdown: a table of keys for each section."""
    lines = [f"# Keys of a {kind.replace('_', ' ')} recipe", "", schema["description"], ""]
    lines += ["Made by `make keys` from the sections of the code; `isoflop keys` prints the same.", ""]
    for section in sections(schema):
        lines += [f"## `{section.header}`", "", section.meaning, ""] if section.header else []
        lines += ["| key | meaning | unit | allowed | default | example |", "|---|---|---|---|---|---|"]
        for key in section.keys:
            coded = (f"`{text}`" if text else "" for text in (key.default, key.example))
            cells = (f"`{key.name}`", key.meaning, key.unit, key.allowed, *coded)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def write_all(root: Path) -> Iterator[tuple[Path, str]]:
    """Every schema and page of a checkout, with the path of each."""
    shipped = sorted([*(root / "recipes").rglob("*.toml"), *(root / "isoflop" / "presets").rglob("*.toml")])
    for kind in KINDS:
        schema = schema_of(kind, [path for path in shipped if kind_of(path) == kind])
        yield (
            root / "isoflop" / "schemas" / f"{kind}.json",
            _lines({**schema, "$defs": "DEFS"}).replace('"DEFS"', _lines(schema["$defs"]).strip()),
        )
        yield root / "docs" / "keys" / f"{kind}.md", page(kind, schema)


def meanings(section: type) -> dict[str, str]:
    """The string under each field of a dataclass."""
    (made,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(made, ast.ClassDef)
    found = {}
    for field, text in zip(made.body, made.body[1:]):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = " ".join(ast.literal_eval(text.value).split())
    return found


def _lines(tree: dict[str, Any]) -> str:
    """JSON with a line for each key."""
    rows = (
        f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}" for key, value in tree.items()
    )
    return "{\n" + ",\n".join(rows) + "\n}\n"


def _define(section: type, definitions: dict[str, Any]) -> None:
    """Put the schema of a section, and of all in it, under its name."""
    from pydantic import TypeAdapter
    from pydantic.json_schema import GenerateJsonSchema

    class Generator(GenerateJsonSchema):
        def nullable_schema(self, schema: Any) -> Any:  # TOML has no null
            return self.generate_inner(schema["schema"])

        def float_schema(self, schema: Any) -> Any:  # editors hand on inf as null
            made = super().float_schema(schema)
            return {**made, "type": ["number", "null"]} if schema.get("allow_inf_nan", True) else made

        def field_title_should_be_set(self, schema: Any) -> bool:
            return False

    if section.__name__ in definitions:
        return
    made = TypeAdapter(typed(section)).json_schema(schema_generator=Generator)
    inner = made.pop("$defs", {})
    definitions[section.__name__] = made
    made["description"] = inspect.getdoc(section)
    said = meanings(section)
    for field in dataclasses.fields(section):
        hint = hints_of(section)[field.name]
        found: dict[str, Any] = made["properties"][field.name]
        for part in _parts(hint):
            if isinstance(part, WrittenAs):
                found = made["properties"][field.name] = {"$ref": f"#/$defs/{part.section.__name__}"}
                _define(part.section, definitions)
            elif isinstance(part, type) and dataclasses.is_dataclass(part):
                _define(part, definitions)
        if text := said.get(field.name):
            found["description"] = text
        default: Any = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        default = to_tree(default)
        if default is not None and default is not dataclasses.MISSING and "$ref" not in found:
            infinite = isinstance(default, float) and math.isinf(default)  # JSON has no such number
            found.update({"x-default": "inf"} if infinite else {"default": default})
    assert inner.keys() <= definitions.keys(), "a section that no field names"


def _parts(hint: Any) -> Iterator[Any]:
    yield hint
    for part in get_args(hint):
        yield from _parts(part)


def _exemplify(tree: Any, schema: dict[str, Any], definitions: dict[str, Any]) -> None:
    """Take the first value that differs from the default as the example of each key."""
    for name, value in tree.items():
        found = schema.get("properties", {}).get(name)
        if found is None:
            continue
        inner = _inner(found, definitions)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict) and inner:
                _exemplify(item, inner, definitions)
        plain = not inner and not (isinstance(value, float) and math.isinf(value))
        if plain and value != found.get("default") and "examples" not in found:
            found["examples"] = [value]


def _inner(found: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any] | None:
    """The section that a key holds, one or several of."""
    reference = found.get("$ref") or found.get("items", {}).get("$ref")
    return definitions[reference.rpartition("/")[2]] if reference else None


def _sections(schema: dict[str, Any], definitions: dict[str, Any], path: str) -> Iterator[Section]:
    several = path.endswith("[]")
    header = f"[{'[' * several}{path.replace('[]', '')}]{']' * several}" if path else ""
    keys, below = [], []
    for name, found in schema.get("properties", {}).items():
        inner = _inner(found, definitions)
        if inner is None:
            keys.append(_key(name, found, name in schema.get("required", ())))
        else:
            said = found.get("description", "")
            meaning = inner["description"] + (f" {said}" if said else "")
            below.append(({**inner, "description": meaning}, f"{path}.{name}".lstrip(".") + "[]" * ("items" in found)))
    if keys:
        yield Section(header, " ".join(schema["description"].split()), keys)
    for inner, name in below:
        yield from _sections(inner, definitions, name)


def _key(name: str, found: dict[str, Any], required: bool) -> Key:
    ending = max((end for end in UNITS if f"_{name}".endswith(f"_{end}")), key=len, default="")
    counted = found.get("type") not in ("boolean", "string") and found.get("maximum") != 1  # a share has no unit
    counted &= name not in NO_UNIT
    default = "required" if required else found.get("x-default", "")
    default = _text(found["default"]) if "default" in found else default
    example = _text(found["examples"][0]) if "examples" in found else ""
    return Key(name, found.get("description", ""), UNITS.get(ending, "") * counted, _allowed(found), default, example)


def _allowed(found: dict[str, Any]) -> str:
    """Which values a key takes, in words."""
    if "enum" in found:
        return ", ".join(map(_text, found["enum"]))
    if "anyOf" in found:
        return " or ".join(dict.fromkeys(_allowed(option) for option in found["anyOf"]))
    kind = found.get("type", "any value")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "array":
        return f"list of: {_allowed(found.get('items', {}))}"
    if kind == "object":
        inner = found.get("additionalProperties")
        return f"keys of your own: {_allowed(inner)}" if isinstance(inner, dict) else "keys of your own"
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{word} {_number(found[key])}" for key, word in words.items() if key in found]
    name = {"integer": "whole number", "string": "text", "boolean": "true or false"}.get(kind, kind)
    return f"{name} {' and '.join(limits)}".strip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1e6 else f"{value:g}"


def _text(value: Any) -> str:
    """As TOML has it, numbers as short as they can be."""
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_text(item)}' for key, item in value.items())} }}" if value else "{}"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    for written, text in write_all(Path(__file__).parents[1]):
        write_text(written, text)
