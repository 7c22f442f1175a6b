"""One self-contained page from a template and plain values: no network, no scripts, every value escaped.

A template stands beside the Python that computes its values (`corpus/report/page.html` beside `page.py`), holds all
words and structure, and extends `pages/base.html`; `pages/macros.html` has its sections, tables and figures. Values are
written by the formats below: `{{ loss|decimal }}`, or by name, as in a column `("loss", "bits_per_byte", "decimal 3")`.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from isoflop.pages.plot import count, number

DASH = "\u2013"
TIMES = "\u00d7"


def page(template: str, *, pictures: Mapping[str, str], **values: Any) -> str:
    """The whole document. `pictures` are inline SVG by name (`plot.svg_text`), the only values that are not escaped.

    A value that a template uses and nothing set is an error, not an empty place.
    """
    return _environment().get_template(template).render(contents=[], pictures=pictures, **values)


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("isoflop", ""),
        autoescape=True,
        undefined=StrictUndefined,
        extensions=["jinja2.ext.do"],
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {**FORMATS, "show": show}
    return found


def show(value: Any, kind: str = "auto") -> str:
    """`value` in a named format, with its digits where it takes some: "percent 1"."""
    name, *digits = kind.split()
    return FORMATS[name](value, *map(int, digits))


def auto(value: Any) -> str:
    """Numbers in a readable form, yes and no, lists with commas, a dash for None, all other values as they are."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return decimal(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return Markup(", ").join(map(auto, value))
    if isinstance(value, dict):
        return Markup("; ").join(Markup("{}: {}").format(key, auto(item)) for key, item in value.items())
    return value if isinstance(value, str) else str(value)


def decimal(value: Any, digits: int = 4) -> str:
    """A number with `digits` significant digits; powers of ten outside 0.001 to 100,000. A dash for None and nan."""
    found = number(value)
    if found is None:
        return DASH
    if found != 0 and not 1e-3 <= abs(found) < 1e5:
        return scientific(found, digits - 1)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(found)))) if found else 0
    return f"{found:,.{decimals}f}"


def scientific(value: Any, digits: int = 2) -> str:
    """1.23 x 10^12, with a raised exponent."""
    found = number(value)
    if not found:
        return DASH if found is None else "0"
    mantissa, exponent = f"{found:.{digits}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return Markup('<span class="nw">{}&thinsp;{}&thinsp;10<sup>{}</sup></span>').format(mantissa, TIMES, int(exponent))


def interval(ends: Any, digits: int = 4) -> str:
    """1.23 to 1.45; a dash where an end is not known."""
    if any(number(end) is None for end in ends):
        return DASH
    return Markup(" to ").join(decimal(end, digits) for end in ends)


def pair(values: Any, digits: int = 4) -> str:
    return Markup(" / ").join(decimal(value, digits) if isinstance(value, float) else auto(value) for value in values)


def _of_number(write: Callable[..., str]) -> Callable[..., str]:
    """A format of finite numbers, with a dash for everything else."""

    def written(value: Any, *digits: int) -> str:
        found = number(value)
        return DASH if found is None else write(found, *digits)

    return written


@_of_number
def duration(seconds: float) -> str:
    """Seconds as 45 s, 12.3 min or 4.5 h."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@_of_number
def size(n_bytes: float) -> str:
    """12.3 MB, 4.56 GB."""
    unit, scale = next(((u, s) for u, s in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)) if n_bytes >= s), ("kB", 1e3))
    return f"{n_bytes / scale:.3g} {unit}"


FORMATS: dict[str, Callable[..., str]] = {
    "auto": auto,
    "decimal": decimal,
    "scientific": scientific,
    "interval": interval,
    "pair": pair,
    "duration": duration,
    "size": size,
    "short": _of_number(count),
    "percent": _of_number(lambda value, digits=2: f"{100 * value:.{digits}f}%"),
    "signed": _of_number(lambda value, digits=2: f"{100 * value:+.{digits}f}%"),
    "times": _of_number(lambda value, digits=3: f"{TIMES}{value:.{digits}g}"),
    "hash": lambda value: str(value)[:16] if value else DASH,
}
"""Name -> how a value is written. "short": 1.23M; "signed": a percentage with its sign; "hash": the first 16 digits;
"pair": 1.23 / 1.45."""


def shape(layers: Any, width: Any) -> str | None:
    """Layers x width of a model, or None where one is not known."""
    return f"{layers} {TIMES} {width}" if number(layers) and number(width) else None
