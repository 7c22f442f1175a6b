"""TOML file -> frozen dataclasses -> plain arguments.

One file is one run. `load_recipe` reads it into a tree of frozen dataclasses, applies `section.key=value` overrides,
refuses unknown keys with a suggestion, and checks every type and every range (`Annotated[int, Range(at_least=1)]`).
`to_toml` writes the resolved recipe back. Nothing here knows any stage: each stage owns its schema (for example
`isoflop.training.pretrain.recipe.PretrainRecipe`), and the rules between its keys.

Sections stay plain dataclasses. pydantic checks a view of them (`typed`), so that sections import nothing for it,
isoflop.optics keeps its own, and a command that reads no recipe does not pay for its import.
"""

import codecs
import dataclasses
import difflib
import functools
import inspect
import json
import math
import os
import re
import tempfile
import tomllib
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NotRequired,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from isoflop.errors import IsoflopError, RecipeError, undamaged

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

T = TypeVar("T")
Tree = dict[str, Any]
"""A TOML or JSON file, or a section of one, as it was read."""


@dataclass(frozen=True)
class Range:
    """Which numbers a key may be: `Annotated[float, Range(above=0)]`. NaN is in no range."""

    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf
    finite: bool = True

    def limits(self, kind: Any) -> dict[str, Any]:
        """In the words of pydantic, for numbers of one kind."""
        pairs = {"ge": self.at_least, "gt": self.above, "le": self.at_most, "lt": self.below}
        said = {key: kind(value) for key, value in pairs.items() if not math.isinf(value)}
        return {**said, "allow_inf_nan": False} if kind is float and self.finite else said

    def __str__(self) -> str:
        limits = [("at least", self.at_least), ("above", self.above), ("at most", self.at_most), ("below", self.below)]
        said = (f"{word} {limit:,.0f}" if 1e6 <= limit < 1e19 else f"{word} {limit:g}" for word, limit in limits)
        return (
            " and ".join(text for text, (_, limit) in zip(said, limits) if not math.isinf(limit)) or "a finite number"
        )


@dataclass(frozen=True)
class WrittenAs:
    """Marks a section that is kept as it is written, `Annotated[dict[str, Any], WrittenAs(X)]`: its keys are X's."""

    section: type


Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(at_least=0)]
MOST = 1e50
Amount = Annotated[float, Range(above=0, at_most=MOST)]
"""FLOPs, tokens, parameters or time that a person asks about; a product of several is still a finite number."""
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
    tree = read_tree(path, overrides)
    try:
        return from_tree(tree, schema)
    except RecipeError as error:
        known = [*hints_of(schema)]
        written = [] if path is None else [key for key in read_tree(path) if key not in known]
        text = _decoded(Path(path).read_bytes()) if path and written else ""
        kind = re.match(r"#:schema .*?(\w+)\.json\s", text)
        if kind is None or any(difflib.get_close_matches(key, known) for key in written):
            raise
        raise RecipeError(f"{path} is a {kind[1]} recipe, as its first line says: {error}") from error


_MARKS = (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")


def _decoded(data: bytes) -> str:
    """Text of a file as editors save it: UTF-8, or what its byte order mark says; TOML knows no marks."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding)
    return data.decode("utf-8")


def read_tree(path: str | Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a recipe and its overrides say, before defaults. Raises RecipeError: file missing or not TOML."""
    tree: dict[str, Any] = {}
    if path is not None:
        path = Path(path)
        if not path.is_file():
            problem = "is a folder" if path.is_dir() else "does not exist"
            near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.toml")], n=1)
            hint = f"did you mean {path.parent / near[0]}?" if near else "give the path of a TOML file"
            raise RecipeError(f"recipe {path} {problem}; {hint}")
        try:
            text = _decoded(path.read_bytes())
            tree = tomllib.loads(text)
        except UnicodeDecodeError as error:
            raise RecipeError(f"recipe {path} is not UTF-8 at byte {error.start}; save it as UTF-8") from error
        except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, lists in lists in lists
            raise RecipeError(f"recipe {path} is not valid TOML: {error}") from error
        if not text.strip():
            raise RecipeError(f"recipe {path} is empty; isoflop keys says what it may hold")
    for override in overrides:
        _apply_override(tree, override)
    return tree


def from_tree(tree: dict[str, Any], schema: type[T], prefix: str = "") -> T:
    """Build `schema` from nested plain data. Raises RecipeError; of several mistakes an unknown key comes first."""
    return check_range(_with_sections(tree, schema), schema, prefix, build=True)


def check_ranges(recipe: Any, prefix: str = "") -> None:
    """Ranges of a tree of dataclasses that was built by hand. Raises RecipeError as `from_tree` does."""
    check_range(dataclasses.asdict(recipe), type(recipe), prefix)


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Arguments whose ranges the signature of a function names. Raises RecipeError as `check_range` does."""
    for name, parameter in inspect.signature(function).parameters.items():
        if ranges_of(parameter.annotation):
            value = given[name].item() if hasattr(given[name], "item") else given[name]  # of numpy
            check_range(value, parameter.annotation, name, parameter.default)


def check_range(value: Any, hint: Any, name: str, default: Any = MISSING, *, build: bool = False) -> Any:
    """The value as its type has it, with `build` in dataclasses.

    Raises:
        RecipeError: naming the key, its value, the type or range, and the default where it is a number.
    """
    from pydantic import TypeAdapter, ValidationError

    adapter = _adapter(hint) if isinstance(hint, type) else TypeAdapter(typed(hint))
    try:
        return adapter.validate_python(value, context=build)
    except ValidationError as error:
        found = error.errors(include_url=False)
        first = next((item for item in found if item["type"] == "extra_forbidden"), found[0])
        reason = first.get("ctx", {}).get("error")
        if isinstance(reason, IsoflopError):
            raise reason from None
        raise RecipeError(_message(first, hint, name, default)) from reason


def typed(hint: Any, ranges: Sequence[Range] = ()) -> Any:
    """What pydantic checks for a type: a section as its keys, numbers and switches without conversions of text."""
    from pydantic import AfterValidator, BeforeValidator, Field, Strict

    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return typed(arguments[0], [extra for extra in arguments[1:] if isinstance(extra, Range)])
    if origin in (Union, types.UnionType):
        options: Any = Union[tuple(typed(option, ranges) for option in arguments if option is not type(None))]  # noqa: UP007
        if len(arguments) > 1 + (type(None) in arguments):  # 5.0 of `int | float` is 5
            options = Annotated[options, Field(union_mode="left_to_right")]
        return Union[options, None] if type(None) in arguments else options  # noqa: UP007 - made at run time
    if origin in (tuple, list, dict):
        made: Any = origin
        return made[tuple(part if part is ... else typed(part) for part in arguments)]
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return Annotated[_keys(hint), AfterValidator(lambda keys, info: hint(**keys) if info.context else keys)]
    limits = [Field(**limit.limits(hint)) for limit in ranges]
    if hint is int:  # 2e9 is how people write token counts
        whole = BeforeValidator(lambda v: int(v) if isinstance(v, float) and v.is_integer() and abs(v) < 2**63 else v)
        return Annotated[int, *limits, Strict(), whole]
    if hint is float:
        return Annotated[float, *limits, Strict(), AfterValidator(_no_nan)]
    return Annotated[bool, Strict()] if hint is bool else hint


@functools.cache
def _keys(schema: type) -> Any:
    """A section as pydantic sees it: keys, types, ranges; what is left out stays out."""
    from typing_extensions import TypedDict

    keys = {field.name: typed(hints_of(schema)[field.name]) for field in dataclasses.fields(schema)}
    required = {field.name for field in dataclasses.fields(schema) if _is_required(field)}
    make: Any = TypedDict
    made = make(schema.__name__, {name: hint if name in required else NotRequired[hint] for name, hint in keys.items()})
    made.__pydantic_config__ = {"extra": "forbid"}
    made.__doc__ = schema.__doc__
    return made


@functools.cache
def _adapter(schema: type) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(typed(schema))


def _message(error: "ErrorDetails", hint: Any, name: str, default: Any) -> str:
    """Key, value, rule and way out of one error of pydantic."""
    kind, value, known = plain_type(hint), error["input"], [""]
    for step in error["loc"]:
        if dataclasses.is_dataclass(kind):
            known = [field.name for field in dataclasses.fields(kind)]
            hint, default = hints_of(kind).get(str(step), Any), getattr(kind, str(step), MISSING)
        elif get_origin(kind) not in (tuple, list, dict):  # pydantic names the option of a union, too
            kind = plain_type([option for option in get_args(hint) if option is not type(None)][-1])
            continue
        else:
            hint, default = (*get_args(kind), Any)[0 if isinstance(step, int) else 1], MISSING
        kind = plain_type(hint)
        name += f"[{step}]" if isinstance(step, int) else f"{'.' if name and name[-1] not in '. ' else ''}{step}"
    if error["type"] == "missing":
        return f"missing key {name}; it has no default: add it to the recipe"
    if error["type"] == "extra_forbidden":
        key = str(error["loc"][-1])
        near = difflib.get_close_matches(key, known, n=1)
        way_out = (
            f"did you mean {name.removesuffix(key)}{near[0]}?" if near else f"known keys: {', '.join(sorted(known))}"
        )
        return f"unknown key {name}; {way_out}"
    if reason := error.get("ctx", {}).get("error"):  # of a section's own check
        return f"{name}: {reason}" if name else str(reason)
    if get_origin(kind) is Literal:
        near = difflib.get_close_matches(str(value), [str(choice) for choice in get_args(kind)], n=1)
        way_out = f"; did you mean {near[0]!r}?" if near else ""
        return f"{name} = {value!r:.200} must be one of {', '.join(map(str, get_args(kind)))}{way_out}"
    if error["type"] in ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"):
        rule = next(iter(ranges_of(hint)), Range(finite=False))
        finite = " and finite" if math.isinf(value) and rule.finite else ""
        way_out = f"; the default is {default}" if isinstance(default, (int, float)) else ""
        return f"{name} = {value!r:.200} must be {rule}{finite}{way_out}"
    wanted = _WANTED.get(dict if dataclasses.is_dataclass(kind) else get_origin(kind) or kind, error["msg"])
    large = kind is int and isinstance(value, float) and value.is_integer()
    return f"{name} = {value!r:.200} must be {wanted}{' below 2^63' * large}"


_WANTED = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    dict: "a section with keys",
} | dict.fromkeys((tuple, list), "a list, for example [1, 2]")


def _no_nan(value: float) -> float:
    from pydantic_core import PydanticKnownError

    if math.isnan(value):
        raise PydanticKnownError("finite_number")
    return value


@functools.cache
def hints_of(schema: type) -> dict[str, Any]:
    """Types of a section's keys, with what is said about them."""
    return get_type_hints(schema, include_extras=True)


def plain_type(hint: Any) -> Any:
    """A type without what is said about it, and without None."""
    if get_origin(hint) is Annotated:
        return plain_type(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return next((plain_type(option) for option in get_args(hint) if option is not type(None)), hint)
    return hint


def ranges_of(hint: Any) -> list[Range]:
    """The ranges that a type names, however deep."""
    return [hint] if isinstance(hint, Range) else [found for part in get_args(hint) for found in ranges_of(part)]


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _with_sections(tree: Any, schema: Any) -> Any:
    """The tree with the sections that have no default but may have: what is missing is then named key by key."""
    if not isinstance(tree, dict):
        return tree
    hints = {field.name: hints_of(schema)[field.name] for field in dataclasses.fields(schema) if _is_required(field)}
    sections = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    return tree | {name: _with_sections(tree.get(name, {}), hint) for name, hint in sections.items()}


def with_types(schema: type, tree: Tree, where: str) -> Tree:
    """A part of a JSON file, its numbers, texts and tables known to be some. Raises RecipeError for another type."""
    for field in dataclasses.fields(schema):
        value, hint = tree.get(field.name), hints_of(schema)[field.name]
        kind = get_origin(plain_type(hint)) or plain_type(hint)
        name = f"{where}.{field.name}".lstrip(".")
        _check_json_type(value, kind, name)
        if kind is dict:
            *_, of_values = get_args(plain_type(hint)) or (object,)
            for key, one in (value or {}).items():
                _check_json_type(one, of_values, f"{name}.{key}")
        if value is not None and (kind is Literal or ranges_of(hint)):
            check_range(value, hint, name)
    return tree


def _check_json_type(value: Any, kind: Any, name: str) -> None:
    types, wanted = _JSON_TYPES.get(kind, (object, ""))
    if value is not None and wanted and (not isinstance(value, types) or isinstance(value, bool)):
        raise RecipeError(f"{name} = {value!r:.80} must be {wanted}; write the file again")


_JSON_TYPES: dict[Any, tuple[Any, str]] = {
    **dict.fromkeys((int, float), ((int, float), "a number")),
    str: (str, "text"),
    dict: (dict, "a table"),
}


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
    """Write a file under a temporary name, flush it to disk and rename: readers never see half of it.

    Raises:
        RecipeError: the name of a device, such as /dev/null, or of a pipe: renaming would put a file in its place.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise RecipeError(f"{path} is a device or a pipe, which a file would replace; give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        # surrogateescape: a file name that the locale could not read is written with the bytes it has
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
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
    write_text(path, json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, kind: type[IsoflopError], way_out: str) -> Tree:
    """The object that a JSON file of ours holds. Raises `kind`: it is cut off, edited or something else."""
    with undamaged(str(path), kind, way_out):
        found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise kind(f"{path} is damaged (no JSON object); {way_out}")
    return found


def write_recipe(path: str | Path, value: Any, header: str = "") -> None:
    """`write_text` of `to_toml`."""
    write_text(path, to_toml(value, header))


def plain(value: Any) -> Any:
    """As JSON can hold it: numpy values as Python's, dataclasses as dicts, numbers that are not finite as None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if callable(listed := getattr(value, "tolist", None)):  # numpy arrays and scalars, without importing numpy
        return plain(listed())
    if isinstance(value, float) and not math.isfinite(value):
        return None  # a diverged loss; JSON has no NaN
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
    except (ValueError, RecursionError):
        tree[key] = text.strip()  # a bare word is a string: data.tokens=runs/tokens


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
