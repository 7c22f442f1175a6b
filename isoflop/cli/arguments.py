"""What commands have in common: options of one meaning everywhere, and what is wrong with given ones, in one sentence.

Arguments in, arguments that the parser takes out (`arranged`); then every value is checked before any work (`checked`).
Overrides may stand anywhere, unknown options get the nearest known one, and what is to be written can be written.
"""

import difflib
import errno
import functools
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from isoflop.errors import RecipeError
from isoflop.recipe import check_range, plain_type

Stage = Callable[..., None]


@dataclass(frozen=True)
class Writes:
    """Marks an option that names what a command writes: "folder", or the ending of a file, as ".json"."""

    what: str


Recipe = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE", help="TOML file")]
Overrides = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="[SECTION.KEY=VALUE ...]", help="values that go before those of the recipe"),
]
Json = Annotated[Path | None, Writes(".json"), tyro.conf.arg(metavar="FILE", help="also write what was found as JSON")]
Out = Annotated[Path, Writes("folder"), tyro.conf.arg(metavar="DIR", help="output folder")]


def checked(stage: Stage) -> Stage:
    """The stage, its options checked before it begins. Raises RecipeError naming the option, its value and the rule."""
    hints = get_type_hints(stage, include_extras=True)
    defaults = {name: parameter.default for name, parameter in signature(stage).parameters.items()}

    @functools.wraps(stage)
    def run(*positional: Any, **options: Any) -> None:
        read = {path.resolve() for path in _paths((*positional, *_given(options, hints)))}
        for name, value in options.items():
            check_range(value, hints[name], _option(name), defaults[name])
            for mark in getattr(hints[name], "__metadata__", ()):
                if isinstance(mark, Writes) and value is not None:
                    if mark.what != "folder" and value.resolve() in read:
                        raise RecipeError(f"{_option(name)} {value} is what the command reads; give another file")
                    _check_writable(_option(name), value, mark.what)
        stage(*positional, **options)

    return run


def arranged(stages: Mapping[str, Stage], arguments: list[str]) -> list[str]:
    """The arguments as the parser wants them: positional ones first, the recipe before its overrides, options last.

    Raises:
        RecipeError: an unknown option, one without a value or with one of a wrong type, too few or too many arguments.
    """
    name = next((n for n in (" ".join(arguments[:2]), *arguments[:1]) if n in stages), "")
    n_words = name.count(" ") + 1
    if not name or {"-h", "--help"} & {*arguments[n_words:]}:
        return arguments
    hints = get_type_hints(stages[name], include_extras=True)
    parameters = signature(stages[name]).parameters.values()
    known = {_option(p.name): p for p in parameters if p.kind is p.KEYWORD_ONLY}
    words, options, rest = [], [], arguments[n_words:]
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("-"):
            words.append(argument)
            continue
        option, equals, value = argument.partition("=")
        option = option.replace("_", "-")
        parameter = known.get(option) or _switch(known, option)
        if parameter is None:
            near = difflib.get_close_matches(option, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"isoflop {name} --help lists what there is"
            raise RecipeError(f"{option} is not an option of isoflop {name}; {hint}")
        if option in options and not _repeats(parameter):
            raise RecipeError(f"{option} is given twice; give it once")
        if isinstance(parameter.default, bool):
            if equals:
                raise RecipeError(f"{argument}: {option} takes no value; leave {equals}{value} out")
            options.append(option)
            continue
        several = _takes_several(parameter)
        values = [value] if equals else []
        while not equals and rest and not rest[0].startswith("--") and (several or not values):
            values.append(rest.pop(0))
        _check_values(option, values, hints[parameter.name])
        options += [option, *values]
    _check_words(name, words, [p for p in parameters if p.kind is p.POSITIONAL_ONLY])
    _check_required(name, options, known)
    return [*arguments[:n_words], *sorted(words, key=_is_override), *options]


def _given(options: Mapping[str, Any], hints: Mapping[str, Any]) -> Iterator[Any]:
    """Values of the options that do not name what is written."""
    for name, value in options.items():
        if not any(isinstance(mark, Writes) for mark in getattr(hints[name], "__metadata__", ())):
            yield value


def _paths(values: Iterable[Any]) -> Iterator[Path]:
    for value in values:
        items = value if isinstance(value, tuple) else (value,)
        yield from (Path(item) for item in items if isinstance(item, (str, Path)))  # laws may be a name or a file


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _switch(known: Mapping[str, Parameter], option: str) -> Parameter | None:
    """The switch that `--no-...` turns off."""
    found = known.get(f"--{option.removeprefix('--no-')}")
    return found if found is not None and isinstance(found.default, bool) and option.startswith("--no-") else None


def _repeats(parameter: Parameter) -> bool:
    """Whether the option may be given more than once, a value each time."""
    return tyro.conf.UseAppendAction in getattr(parameter.annotation, "__metadata__", ())


def _takes_several(parameter: Parameter) -> bool:
    """Whether values follow each other after the option."""
    return isinstance(parameter.default, tuple) and not _repeats(parameter)


def _is_override(word: str) -> bool:
    return re.match(r"[\w.\-]+=", word) is not None


def _check_values(option: str, values: list[str], hint: Any) -> None:
    kind = plain_type(hint)
    if get_origin(kind) is tuple:
        kind = plain_type(get_args(kind)[0])
    if not values or (kind is Path and not values[0]):
        raise RecipeError(f"{option} needs a value after it")
    for value in values:
        if get_origin(kind) is Literal:
            choices = [str(choice) for choice in get_args(kind)]
            if value not in choices:
                near = difflib.get_close_matches(value, choices, 1)
                raise RecipeError(
                    f"{option} = {value!r} must be one of {', '.join(choice or 'nothing' for choice in choices)}"
                    + (f"; did you mean {near[0]}?" if near else "")
                )
        elif kind in (int, float):
            try:
                kind(value)
            except ValueError:
                expected = "a whole number" if kind is int else "a number"
                raise RecipeError(f"{option} = {value!r} must be {expected}") from None
        elif kind is Path and _is_override(value):
            raise RecipeError(f"{option} = {value!r} reads like an override: give {option} a path before it")


def _check_words(name: str, words: list[str], positional: list[Parameter]) -> None:
    needed = [p for p in positional if p.default is p.empty]
    many = any(get_origin(plain_type(p.annotation)) is tuple for p in positional)
    if len(words) < len(needed):
        raise RecipeError(f"isoflop {name} needs {_metavar(needed[len(words)])}; isoflop {name} --help says more")
    if len(words) > len(positional) and not many:
        raise RecipeError(f"isoflop {name} does not know what to do with {words[len(positional)]!r}; leave it out")


def _check_required(name: str, options: list[str], known: Mapping[str, Parameter]) -> None:
    for option, parameter in known.items():
        if parameter.default is parameter.empty and option not in options:
            raise RecipeError(f"isoflop {name} needs {option} {_metavar(parameter)}")


def _metavar(parameter: Parameter) -> str:
    """What the help calls a value: RECIPE, DIR ..."""
    metadata = getattr(parameter.annotation, "__metadata__", ())
    found = [mark.metavar for mark in metadata if getattr(mark, "metavar", None)]
    return found[0] if found else parameter.name.upper()


def _check_writable(option: str, path: Path, what: str) -> None:
    """Raises RecipeError where something else is there already, or the disk refuses it."""
    if path.is_dir() if what != "folder" else path.exists() and not path.is_dir():
        found, wanted = ("file", "folder") if what == "folder" else ("folder", "file")
        raise RecipeError(f"{option} {path} is a {found}; give the name of a {wanted}")
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
