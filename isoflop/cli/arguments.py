"""What commands have in common: options of one meaning everywhere, and what is wrong with given ones, in one sentence.

The parser turns arguments into values; every value is then checked before any work (`check`), outputs among them: what
is to be written can be written, and is nothing that the command reads. What the parser refuses is said by `sentence`.
"""

import contextlib
import difflib
import errno
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from inspect import BoundArguments
from inspect import Parameter as Argument
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from cyclopts import CycloptsError, Parameter, Token, convert
from cyclopts.exceptions import (
    CoercionError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from isoflop import recipe
from isoflop.errors import RecipeError, did_you_mean
from isoflop.recipe import check_range, plain_type

T = TypeVar("T")


@dataclass(frozen=True)
class Writes:
    """Marks an option that names what a command writes: "folder", or the ending of a file, as ".json"."""

    what: str


Recipe = Annotated[Path, Parameter(metavar="RECIPE", help="TOML file; isoflop keys says what it may hold")]
Overrides = Annotated[str, Parameter("SECTION.KEY=VALUE", help="values that replace those of the recipe")]
Json = Annotated[Path | None, Writes(".json"), Parameter(metavar="FILE", help="also write what was found as JSON")]
Out = Annotated[Path, Writes("folder"), Parameter(metavar="DIR", help="output folder")]


def load_recipe(path: str | Path, schema: type[T], overrides: Sequence[str] = ()) -> T:
    """`isoflop.recipe.load_recipe`; a recipe of another kind is refused with the command that takes it.

    Raises:
        RecipeError: what cannot be read, or the recipe of another command.
    """
    try:
        return recipe.load_recipe(path, schema, overrides)
    except RecipeError as error:
        from isoflop.keys import COMMANDS, KINDS, kinds_of

        kinds = []
        with contextlib.suppress(RecipeError):  # it cannot be read at all, as the error says
            kinds = kinds_of(Path(path))
        if len(kinds) == 1 and kinds[0] in COMMANDS and KINDS[kinds[0]] != f"{schema.__module__}.{schema.__name__}":
            command = f"isoflop {COMMANDS[kinds[0]]}"
            raise RecipeError(f"{path} is a recipe of another command: {command} {path}") from error
        raise


def converted(hint: Any, tokens: Sequence[Token]) -> Any:
    """The parser's own conversion, but that 1.5 is no whole number, a path is not empty, and an override is no path."""
    kind, several = plain_type(hint), get_origin(plain_type(hint)) is tuple
    kind = plain_type(get_args(kind)[0]) if several else kind
    if kind in (int, float):
        numbers = [_number(token.value, kind, token.keyword or "") for token in tokens]
        return tuple(numbers) if several else numbers[0]
    for token in tokens if kind is Path and not several else ():
        if token.keyword and not token.value:
            raise RecipeError(f"{token.keyword} needs a value after it")
        if token.keyword and is_override(token.value):
            raise RecipeError(
                f"{token.keyword} = {token.value!r} reads like an override: give {token.keyword} a path before it"
            )
        if is_override(token.value):  # of a recipe that follows it
            return token.value
    return convert(hint, tokens)


def _number(text: str, kind: Any, name: str) -> Any:
    """Its range is checked later, with the default at hand."""
    with contextlib.suppress(ValueError):
        return kind(text)
    with contextlib.suppress(ValueError):
        return check_range(float(text), kind, name)  # 2e9 is a whole number
    return check_range(text, kind, name)


def is_override(word: str) -> bool:
    """section.key=value"""
    return re.match(r"[\w.\-]+=", word) is not None


def check(bound: BoundArguments) -> list[Any]:
    """The positional arguments of a command, the recipe before its overrides; options are checked before it begins.

    Raises:
        RecipeError: naming the option, its value and the rule.
    """
    parameters = bound.signature.parameters
    words = [*bound.args]
    if "overrides" in parameters:
        words.sort(key=lambda word: is_override(str(word)))
    kinds = [plain_type(p.annotation) for p in parameters.values() if p.kind is not Argument.KEYWORD_ONLY]
    kinds += kinds[-1:] * (len(words) - len(kinds))  # of tables, of overrides
    words = [Path(word) if kind is Path else word for word, kind in zip(words, kinds)]
    options = {name: value for name, value in bound.arguments.items() if parameters[name].kind is Argument.KEYWORD_ONLY}
    marks = {name: [m for m in get_args(parameters[name].annotation) if isinstance(m, Writes)] for name in options}
    read = {os.path.realpath(path) for path in _paths([*words, *(options[n] for n in options if not marks[n])])}
    written: dict[str, str] = {}
    for name, value in options.items():
        check_range(value, parameters[name].annotation, option(name), parameters[name].default)
        for mark in marks[name] if isinstance(value, Path) else ():
            place = os.path.realpath(value)
            if mark.what != "folder" and place in read:
                raise RecipeError(f"{option(name)} {value} is what the command reads; give another file")
            if place in written:
                raise RecipeError(f"{written[place]} and {option(name)} both name {value}; give each its own")
            written[place] = option(name)
            require_writable(option(name), value, mark.what)
    return words


def sentence(error: CycloptsError, commands: Iterable[str]) -> str:
    """What is wrong with the arguments, and a way out."""
    name = " ".join(("isoflop", *(error.command_chain or ())))
    reason = error.__cause__
    if isinstance(reason, RecipeError):
        return str(reason)
    if isinstance(error, UnknownOptionError):
        given = (error.token.keyword or error.token.value).partition("=")[0]
        known = [name for argument in error.argument_collection for name in argument.names]
        hint = did_you_mean(given, known, f"{name} --help lists what there is")
        hint = f"keys of a recipe have no dashes: {given[2:]}=..." if "." in given else hint
        return f"{given} is not an option of {name}; {hint}"
    if isinstance(error, UnknownCommandError):
        return _unknown((error.unused_tokens or [""])[0], error.command_chain or (), commands)
    if isinstance(error, RepeatArgumentError):
        return f"{error.token.keyword} is given twice; give it once"
    if isinstance(error, UnusedCliTokensError):
        return f"{name} does not know what to do with {(error.unused_tokens or [''])[0]!r}; leave it out"
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        wanted = error.argument.parameter.metavar or error.argument.name
        if error.argument.tokens or error.keyword:
            several = len(wanted.split()) > 1  # of the two files of --records one was given
            return f"{error.keyword or error.argument.name} needs {wanted if several else 'a value'} after it"
        is_option = error.argument.name.startswith("--")
        said = f"{error.argument.name} {wanted}" if is_option else f"{wanted}; {name} --help says more"
        return f"{name} needs {said}"
    if isinstance(error, CoercionError) and error.token is not None and error.target_type is not None:
        try:
            check_range(error.token.value, error.target_type, error.token.keyword or "")
        except RecipeError as found:
            return str(found)
    error.verbose = False
    return str(error)


def _unknown(word: str, group: Iterable[str], commands: Iterable[str]) -> str:
    group = " ".join(group)
    names = [name.removeprefix(f"{group} ") for name in commands if name.startswith(group)]
    near = difflib.get_close_matches(word, [name.split(" ")[0] for name in names], 1)
    if group and not near:
        return f"{word} is not a command of isoflop {group}; it has {', '.join(names)}: isoflop {group} {names[0]} ..."
    hint = f"did you mean {near[0]}?" if near else "isoflop --help lists what there is"
    return f"{word} is not a command of {f'isoflop {group}'.strip()}; {hint}"


def option(name: str) -> str:
    """As it is typed."""
    return f"--{name.replace('_', '-')}"


def _paths(values: Iterable[Any]) -> Iterator[Path]:
    for value in values:
        items = value if isinstance(value, tuple) else (value,)
        yield from (Path(item) for item in items if isinstance(item, (str, Path)))  # laws may be a name or a file


def require_writable(option: str, path: Path, what: str) -> None:
    """Raises RecipeError where something else is there already, or the disk refuses it."""
    if path.is_dir() if what != "folder" else path.exists() and not path.is_dir():
        found, wanted = ("file", "folder") if what == "folder" else ("folder", "file")
        raise RecipeError(f"{option} {path} is a {found}; give the name of a {wanted}")
    if what != "folder" and path.exists() and not path.is_file():
        raise RecipeError(f"{option} {path} is a device or a pipe, which a file would replace; give the name of a file")
    if what != "folder" and path.is_file() and path.suffix != what:
        raise RecipeError(f"{option} {path} is there and no {what} file; give another name, or delete it")
    try:
        with tempfile.TemporaryFile(dir=next(folder for folder in (path, *path.parents) if folder.is_dir())):
            pass
        if any(part.is_file() for part in path.parents):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except OSError as error:
        reason = error.strerror or error
        raise RecipeError(f"{option} {path} can't be written: {reason}; give another path") from error


def require_own(option: str, path: Path, begins: str) -> None:
    """Raises RecipeError where a recipe is there that does not begin as those that the command writes."""
    if path.is_file() and re.match(begins, path.read_text(encoding="utf-8", errors="replace")) is None:
        raise RecipeError(
            f"{option} {path} is there and this command did not write it; give another name, or delete it"
        )


def refuse_unused(why: str, **options: Any) -> None:
    """Options that this use of a command ignores. Raises RecipeError for the first that was given."""
    for name, value in options.items():
        if value:
            raise RecipeError(f"{option(name)} has no effect {why}; leave it out")
