"""All that can be asked for: commands with their options, shipped recipes with their keys, and what each kind may say.

`python tests/golden/commands.py` prints the list as JSON; `--write` keeps it as commands.json, which a later version
must still offer. Options are read from the help texts, so that it does not matter which library parses them; a switch
counts once (`--no-x` is the other side of `--x`).
"""

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import sys
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.cli.main import main

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KEPT = HERE / "commands.json"
EVERYWHERE = {"--help"}


def help_of(*words: str) -> str:
    """What `isoflop WORDS --help` prints, without colours; empty where there is no such command."""
    printed = io.StringIO()
    before = {name: os.environ.get(name) for name in ("COLUMNS", "NO_COLOR", "TERM")}
    os.environ.update(COLUMNS="200", NO_COLOR="1", TERM="dumb")
    code: Any = 0
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            main([*words, "--help"])
    except SystemExit as stopped:
        code = stopped.code
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return "" if code else re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue())


def options_of(command: str) -> list[str] | None:
    """Long options of a command; None where it is gone."""
    text = help_of(*command.split())
    found = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))
    twins = {name for name in found if name.startswith("--no-") and "--" + name.removeprefix("--no-") in found}
    return sorted(found - twins - EVERYWHERE) if text else None


def commands(*group: str) -> Iterator[str]:
    """Every command, groups gone into: the words that begin a line of a help text and have a help text of their own."""
    text, words = help_of(*group), r"[a-z][a-z-]*" if group else r"[a-z][a-z-]*(?: [a-z-]+)?"
    for name in dict.fromkeys(re.findall(rf"^[^\w\n-]*({words})(?=\s{{2,}}\S)", text, re.MULTILINE)):
        path = (*group, *name.split())
        if f"isoflop {' '.join(path)}" not in help_of(*path).partition("[")[0]:  # the usage names a command in full
            continue
        below = list(commands(*path)) if len(path) == 1 else []
        yield from below or [" ".join(path)]


def recipes() -> dict[str, list[str]]:
    """Keys of every shipped recipe, by its path; presets by the path below their folder."""
    files = sorted([*(ROOT / "recipes").rglob("*.toml"), *(ROOT / "isoflop").rglob("*.toml")])
    return {name_of(path): sorted(keys_of(tomllib.loads(path.read_text(encoding="utf-8")))) for path in files}


def name_of(path: Path) -> str:
    """recipes/KIND/NAME or presets/.../NAME, wherever in the package that lies."""
    parts = path.relative_to(ROOT).parts
    return "/".join(parts[parts.index("presets") :] if "presets" in parts else parts)


def keys_of(tree: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all values; entries of a list of tables as NAME[]."""
    for key, value in tree.items():
        tables = value if isinstance(value, list) and value and isinstance(value[0], dict) else []
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{key}.")
        elif tables:
            for table in tables:
                yield from keys_of(table, f"{prefix}{key}[].")
        else:
            yield f"{prefix}{key}"


def known_keys() -> dict[str, dict[str, Any]]:
    """Kind of recipe -> every key that it may have, with its default (null: none, or no plain value)."""
    from test_recipes import SCHEMAS

    return {kind: dict(sorted(fields_of(schema))) for kind, schema in SCHEMAS.items()}


def fields_of(schema: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of a dataclass and of the sections in it, in lists and options of sections too."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        name = f"{prefix}{field.name}"
        sections = [part for part in _parts(hints[field.name]) if dataclasses.is_dataclass(part)]
        for section in sections:
            yield from fields_of(section, f"{name}.")
        if not sections:
            plain = isinstance(field.default, (bool, int, float, str)) and math.isfinite(_number(field.default))
            yield name, field.default if plain else None


def _parts(hint: Any) -> list[Any]:
    inner = typing.get_args(hint)
    return [part for each in inner for part in _parts(each)] if inner else [hint]


def _number(value: Any) -> float:
    return 0.0 if isinstance(value, str) else value


def offered() -> dict[str, Any]:
    """The whole list."""
    return {
        "commands": {command: options_of(command) for command in commands()},
        "recipes": {name: sorted(set(keys)) for name, keys in recipes().items()},
        "keys": known_keys(),
    }


def lost(kept: dict[str, Any]) -> list[str]:
    """What a list names and is not offered any more: commands, options, recipes, keys, defaults."""
    lines = []
    for command, options in kept["commands"].items():
        now = options_of(command)
        gone = [f"{command} {option}" for option in options if option not in (now or ())]
        lines += [command] if now is None else gone
    shipped = recipes()
    for name, keys in kept["recipes"].items():
        gone = [f"{name}: {key}" for key in keys if key not in shipped.get(name, ())]
        lines += gone if name in shipped else [name]
    known = known_keys()
    for kind, keys in kept["keys"].items():
        for key, default in keys.items():
            if key not in known.get(kind, {}):
                lines.append(f"{kind}: {key}")
            elif default is not None and known[kind][key] != default:
                lines.append(f"{kind}: {key} = {known[kind][key]!r} by default, was {default!r}")
    return lines


def to_text(tree: dict[str, Any]) -> str:
    """JSON with a line for each command, recipe and kind."""
    parts = []
    for name, rows in tree.items():
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in rows.items())
        parts.append(f' "{name}": {{\n{lines}\n }}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    text = to_text(offered())
    if "--write" in sys.argv:
        KEPT.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
