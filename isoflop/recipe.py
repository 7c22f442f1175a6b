"""TOML file -> frozen dataclasses -> plain arguments.

One file is one run. `load_recipe` reads it into a tree of frozen dataclasses, applies `section.key=value` overrides,
refuses unknown keys with a suggestion, and checks every type and every range (`Annotated[int, Range(at_least=1)]`).
`to_toml` writes the resolved recipe back. Nothing here knows any stage: each stage owns its schema (for example
`isoflop.training.pretrain.recipe.PretrainRecipe`), and the rules between its keys.
"""

import contextlib
import dataclasses
import difflib
import functools
import json
import math
import os
import tempfile
import tomllib
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from isoflop.errors import RecipeError

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Which numbers a key may be: `Annotated[float, Range(above=0)]`; of a list, each of them. NaN is in no range."""

    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf
    finite: bool = True

    def __contains__(self, value: float) -> bool:
        inside = self.at_least <= value <= self.at_most and (self.above < value or self.above == -math.inf)
        return inside and (value < self.below or self.below == math.inf) and not (self.finite and math.isinf(value))

    def __str__(self) -> str:
        limits = [("at least", self.at_least), ("above", self.above), ("at most", self.at_most), ("below", self.below)]
        said = (f"{word} {limit:,.0f}" if limit >= 1e6 else f"{word} {limit:g}" for word, limit in limits)
        return (
            " and ".join(text for text, (_, limit) in zip(said, limits) if not math.isinf(limit)) or "a finite number"
        )


Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(at_least=0)]
Share = Annotated[float, Range(at_least=0, at_most=1)]
PositiveInt = Annotated[int, Range(at_least=1)]
NotNegativeInt = Annotated[int, Range(at_least=0)]
Seed = Annotated[int, Range(at_least=0, at_most=2**32 - 1)]
Processes = Annotated[int, Range(at_least=0, at_most=1024)]
"""Or threads; 0 leaves the choice to the program."""


def load_recipe(path: str | Path | None, schema: type[T], overrides: Sequence[str] = ()) -> T:
    """Read `path` (None: only defaults), apply `section.key=value` overrides, return an instance of `schema`.

    Raises:
        RecipeError: file missing or not TOML, unknown key (with the nearest known one), wrong type, missing key,
            a number out of its range.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        path = Path(path)
        if not path.is_file():
            problem = "is a folder" if path.is_dir() else "does not exist"
            near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.toml")], n=1)
            hint = f"did you mean {path.parent / near[0]}?" if near else "give the path of a TOML file"
            raise RecipeError(f"recipe {path} {problem}; {hint}")
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe {path} is not valid TOML: {error}") from error
    for override in overrides:
        _apply_override(tree, override)
    return from_tree(tree, schema)


def from_tree(tree: dict[str, Any], schema: type[T], prefix: str = "") -> T:
    """Build `schema` from nested plain data. Keys are checked before values. Raises RecipeError."""
    hints = _hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema)}  # type: ignore[arg-type]
    for key in tree:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known keys: {', '.join(sorted(fields))}"
            raise RecipeError(f"unknown key {prefix}{key}; {hint}")
    values = {}
    for name, field in fields.items():
        if name in tree:
            values[name] = _convert(tree[name], hints[name], f"{prefix}{name}")
            check_range(values[name], hints[name], f"{prefix}{name}", field.default)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            nested = hints[name]
            if dataclasses.is_dataclass(nested) and isinstance(nested, type):
                values[name] = from_tree({}, nested, f"{prefix}{name}.")
            else:
                raise RecipeError(f"missing key {prefix}{name}; it has no default: add it to the recipe")
    return schema(**values)


def check_ranges(recipe: Any, prefix: str = "") -> None:
    """Ranges of a tree of dataclasses that was built by hand. Raises RecipeError as `from_tree` does."""
    hints = _hints(type(recipe))
    for field in dataclasses.fields(recipe):
        check_range(getattr(recipe, field.name), hints[field.name], f"{prefix}{field.name}", field.default)


def check_range(value: Any, hint: Any, name: str, default: Any = dataclasses.MISSING) -> None:
    """Whether a value, and each value in it, is in the `Range` that its type names.

    Raises:
        RecipeError: naming the key, its value, the range, and the default where it is a number.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        check_ranges(value, f"{name}.")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            for part in get_args(plain_type(hint))[:1]:
                check_range(item, part, f"{name}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            for part in get_args(plain_type(hint))[1:]:
                check_range(item, part, f"{name}.{key}")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        way_out = f"; the default is {default}" if isinstance(default, (int, float)) else ""
        for rule in _rules(hint):
            if value not in rule:
                finite = " and finite" if math.isinf(value) and rule.finite else ""
                raise RecipeError(f"{name} = {value!r} must be {rule}{finite}{way_out}")


@functools.cache
def _hints(schema: type) -> dict[str, Any]:
    return get_type_hints(schema, include_extras=True)


def plain_type(hint: Any) -> Any:
    """A type without what is said about it, and without None."""
    if get_origin(hint) is Annotated:
        return plain_type(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return next((plain_type(option) for option in get_args(hint) if option is not type(None)), hint)
    return hint


def _rules(hint: Any) -> list[Range]:
    """The ranges of a number: those of its type, of every type of a union; NaN is refused everywhere."""
    if get_origin(hint) is Annotated:
        return [extra for extra in get_args(hint)[1:] if isinstance(extra, Range)] + _rules(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return [rule for option in get_args(hint) for rule in _rules(option)]
    return [Range(finite=False)] if hint is float else []


def to_tree(value: Any) -> Any:
    """The inverse of `from_tree`: nested dicts of plain values, None left out (TOML has no null)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: to_tree(item) for name, item in pairs if item is not None}
    if isinstance(value, dict):
        return {str(key): to_tree(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_tree(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def to_toml(value: Any, header: str = "") -> str:
    """TOML text of a recipe; `header` becomes comment lines at the top."""
    lines = [f"# {line}".rstrip() for line in header.splitlines()]
    _emit(to_tree(value), [], lines)
    return "\n".join(lines).strip("\n") + "\n"


def write_text(path: str | Path, text: str) -> None:
    """Write a file under a temporary name, flush it to disk and rename: readers never see half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # noqa: PTH101 - mkstemp makes it private
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: Any) -> None:
    """`write_text` of indented JSON; numpy scalars and paths are made plain, NaN and infinity become null."""
    write_text(path, json.dumps(_plain(value), indent=1, ensure_ascii=False) + "\n")


def write_recipe(path: str | Path, value: Any, header: str = "") -> None:
    """`write_text` of `to_toml`."""
    write_text(path, to_toml(value, header))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if callable(plain := getattr(value, "tolist", None)):  # numpy arrays and scalars, without importing numpy
        return _plain(plain())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _apply_override(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise RecipeError(f"override {override!r} must read section.key=value, for example train.seed=1")
    *sections, key = name.strip().split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"override {override!r}: {section} is a value, not a section")
    try:
        tree[key] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        tree[key] = text.strip()  # a bare word is a string: data.tokens=runs/tokens


def _convert(value: Any, hint: Any, name: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _convert(value, arguments[0], name)
    if origin in (Union, types.UnionType):
        *first, last = (option for option in arguments if option is not type(None))
        for option in first:
            with contextlib.suppress(RecipeError):
                return _convert(value, option, name)
        return _convert(value, last, name)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise RecipeError(f"{name} = {value!r} must be a section with keys")
        return from_tree(value, hint, f"{name}.")
    if origin is Literal:
        if value not in arguments:
            close = difflib.get_close_matches(str(value), [str(a) for a in arguments], n=1)
            hint_text = f"; did you mean {close[0]!r}?" if close else ""
            raise RecipeError(f"{name} = {value!r} must be one of {', '.join(map(str, arguments))}{hint_text}")
        return value
    if origin in (tuple, list):
        if not isinstance(value, list):
            raise RecipeError(f"{name} = {value!r} must be a list, for example [1, 2]")
        items = [_convert(item, arguments[0], f"{name}[{index}]") for index, item in enumerate(value)]
        return tuple(items) if origin is tuple else items
    if origin is dict:
        if not isinstance(value, dict):
            raise RecipeError(f"{name} = {value!r} must be a section with keys")
        return {key: _convert(item, arguments[1], f"{name}.{key}") for key, item in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 2e9 is how people write token counts
    if hint is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(hint, type) or not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        expected = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(hint, str(hint))
        raise RecipeError(f"{name} = {value!r} must be {expected}")
    return value


def _emit(tree: dict[str, Any], section: list[str], lines: list[str]) -> None:
    scalars = {key: item for key, item in tree.items() if not isinstance(item, dict)}
    if section and (scalars or not tree):
        lines.extend(["", f"[{'.'.join(_toml_key(part) for part in section)}]"])
    for key, item in scalars.items():
        lines.append(f"{_toml_key(key)} = {_toml_value(item)}")
    for key, item in tree.items():
        if isinstance(item, dict):
            _emit(item, [*section, key], lines)


def _toml_key(key: str) -> str:
    return key if key and all(c.isascii() and (c.isalnum() or c in "-_") for c in key) else _toml_text(key)


def _toml_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML escapes it, JSON does not


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return "nan"
        if math.isinf(value):
            return "inf" if value > 0 else "-inf"
        return repr(value)
    if isinstance(value, (int, str)):
        return _toml_text(value) if isinstance(value, str) else str(value)
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml_key(k)} = {_toml_value(v)}" for k, v in value.items()) + " }"
    raise TypeError(f"{value!r} has no TOML form")
