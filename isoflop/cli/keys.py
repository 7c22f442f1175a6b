"""What a recipe may hold: keys prints it, schema writes it for editors. Both read isoflop/schemas only."""

import json as json_module
import textwrap
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from isoflop.cli.arguments import Writes
from isoflop.cli.console import say
from isoflop.errors import RecipeError, did_you_mean
from isoflop.keys import KINDS, Section, sections, stored_schema
from isoflop.recipe import write_text

Kind = Annotated[str, Parameter(metavar="KIND", help=f"one of {', '.join(KINDS)}")]


def keys(
    name: Annotated[
        str, Parameter(metavar="KIND|SECTION", help="as sweep, train or train.balance; empty: list them")
    ] = "",
    /,
) -> None:
    """Every key of a recipe: meaning, unit, what it may be, default, example."""
    found = {kind: sections(stored_schema(kind)) for kind in KINDS}
    if not name:
        say("Kinds of recipes and their sections:\n")
        for kind, parts in found.items():
            headers = " ".join(part.header for part in parts if part.header)
            say(textwrap.fill(f"{kind:<15}{headers}", 110, initial_indent="  ", subsequent_indent=" " * 17))
        say("\nMore: isoflop keys KIND or isoflop keys SECTION, as isoflop keys sweep or isoflop keys train.balance")
        return
    chosen = (
        {name: found[name]}
        if name in found
        else {
            kind: inside for kind, parts in found.items() if (inside := [part for part in parts if _is_in(part, name)])
        }
    )
    if not chosen:
        known = sorted({*KINDS, *(_bare(part) for parts in found.values() for part in parts if part.header)})
        hint = did_you_mean(name, known, "isoflop keys lists them")
        raise RecipeError(f"{name} is no kind of recipe and no section of one; {hint}")
    for kind, parts in chosen.items():
        alike = [other for other in chosen if chosen[other] == parts]
        if kind == alike[0]:  # several kinds may have the same section
            say(f"# {', '.join(alike)} recipe")
            for part in parts:
                _print_section(part)


def schema(
    kind: Kind = "",
    /,
    *,
    out: Annotated[
        Path | None, Writes("folder"), Parameter(metavar="DIR", help="write KIND.json of every kind there")
    ] = None,
) -> None:
    """JSON Schema of a recipe, for editors that complete and check TOML."""
    if kind and kind not in KINDS:
        hint = did_you_mean(kind, KINDS, f"known kinds: {', '.join(KINDS)}")
        raise RecipeError(f"{kind} is no kind of recipe; {hint}")
    if not kind and out is None:
        raise RecipeError(f"isoflop schema needs KIND ({', '.join(KINDS)}), or --out DIR for all of them")
    for name in [kind] if kind else KINDS:
        text = json_module.dumps(stored_schema(name), indent=1, ensure_ascii=False)
        if out is None:
            say(text)
        else:
            write_text(out / f"{name}.json", text + "\n")
    if out is not None:
        say(f"schemas in {out}; a recipe that begins with #:schema PATH is completed by editors with a TOML server")


def _bare(part: Section) -> str:
    return part.header.strip("[]")


def _is_in(part: Section, name: str) -> bool:
    return _bare(part) == name or _bare(part).startswith(f"{name}.")


def _print_section(part: Section) -> None:
    say("\n" + _wrapped(f"{part.header}  {part.meaning}", "") if part.header else "")
    for key in part.keys:
        facts = [f"{key.allowed}{f' ({key.unit})' if key.unit else ''}"]
        facts += [f"default {key.default}"] if key.default not in ("", "required") else [key.default]
        facts += [f"for example {key.example}"] if key.example else []
        say(_wrapped(f"{key.name}: {key.meaning}", "  "))
        say(_wrapped("; ".join(fact for fact in facts if fact), "      "))


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, 110, initial_indent=indent, subsequent_indent="      ", break_on_hyphens=False)
