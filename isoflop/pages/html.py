"""Pieces of one self-contained HTML page: escaping, numbers, tables, figures, style. No network, no scripts.

Everything that enters as data is escaped here, so that sections can be written as plain text. `Markup` is text that is
already HTML; only this file turns data into it.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from isoflop.pages.plot import count, number


class Markup(str):
    """A string that is HTML already."""


Pictures = Mapping[str, str]
"""Figure name -> inline SVG, as `plot.svg_text` makes it."""


def markup(value: Any) -> Markup:
    """`value` as HTML: `Markup` as it is, None as a dash, numbers in a readable form, everything else escaped."""
    if isinstance(value, Markup):
        return value
    if value is None:
        return Markup("&ndash;")
    if isinstance(value, bool):
        return Markup("yes" if value else "no")
    if isinstance(value, float):
        return decimal(value)
    if isinstance(value, int):
        return Markup(f"{value:,}")
    if isinstance(value, (list, tuple)):
        return Markup(", ".join(markup(item) for item in value))
    if isinstance(value, dict):
        return Markup("; ".join(f"{html.escape(str(key))}: {markup(item)}" for key, item in value.items()))
    return Markup(html.escape(str(value)))


def decimal(value: Any, digits: int = 4) -> Markup:
    """A number with `digits` significant digits; powers of ten outside 0.001 to 100,000. A dash for None and nan."""
    found = number(value)
    if found is None:
        return Markup("&ndash;")
    if found != 0 and not 1e-3 <= abs(found) < 1e5:
        return scientific(found, digits - 1)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(found)))) if found else 0
    return Markup(f"{found:,.{decimals}f}")


def scientific(value: Any, digits: int = 2) -> Markup:
    """1.23 x 10^12 as HTML."""
    found = number(value)
    if found is None:
        return Markup("&ndash;")
    if found == 0:
        return Markup("0")
    mantissa, exponent = f"{found:.{digits}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return Markup(f'<span class="nw">{mantissa}&thinsp;&times;&thinsp;10<sup>{int(exponent)}</sup></span>')


def short(value: Any) -> Markup:
    """1234567 as 1.23M."""
    found = number(value)
    return Markup("&ndash;" if found is None else count(found))


def percent(value: Any, digits: int = 2, *, signed: bool = False) -> Markup:
    """A share as a percentage."""
    found = number(value)
    return Markup("&ndash;" if found is None else f"{100 * found:{'+' if signed else ''}.{digits}f}%")


def duration(seconds: Any) -> Markup:
    """Seconds as 45 s, 12.3 min or 4.5 h."""
    found = number(seconds)
    if found is None:
        return Markup("&ndash;")
    if found < 120:
        return Markup(f"{found:.0f} s" if found >= 10 else f"{found:.1f} s")
    return Markup(f"{found / 60:.1f} min" if found < 7200 else f"{found / 3600:.1f} h")


def tag(name: str, *parts: Any, css: str = "") -> Markup:
    """An element around parts, each turned into HTML."""
    attribute = f' class="{css}"' if css else ""
    return Markup(f"<{name}{attribute}>" + "".join(markup(part) for part in parts) + f"</{name}>")


def sentence(*parts: Any) -> Markup:
    """A paragraph."""
    return tag("p", *parts)


def join(*parts: Any) -> Markup:
    """Parts one after the other; None and empty ones are left out."""
    return Markup("\n".join(markup(part) for part in parts if part is not None and part != ""))


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]], *, text_columns: Sequence[int] = (0,)) -> Markup:
    """A table that scrolls on narrow screens, or nothing without rows; only `text_columns` are aligned left."""

    def line(element: str, values: Sequence[Any]) -> str:
        css = ["" if index in text_columns else ' class="n"' for index in range(len(values))]
        cells = [f"<{element}{c}>{markup(value)}</{element}>" for c, value in zip(css, values, strict=True)]
        return f"<tr>{''.join(cells)}</tr>"

    body = "\n".join(line("td", row) for row in rows)
    if not body:
        return Markup("")
    head = line("th", headers)
    return Markup(f'<div class="scroll"><table><thead>{head}</thead><tbody>\n{body}\n</tbody></table></div>')


def facts(pairs: Iterable[tuple[str, Any]]) -> Markup:
    """Names and values in two columns; pairs without a value are left out."""
    items = [
        f"<dt>{markup(name)}</dt><dd>{markup(value)}</dd>" for name, value in pairs if value is not None and value != ""
    ]
    return Markup(f'<dl class="facts">{"".join(items)}</dl>') if items else Markup("")


def tiles(items: Iterable[tuple[str, Any, Any]]) -> Markup:
    """Large numbers with a name above and a remark below."""
    cells = [
        f'<div class="tile"><span>{markup(name)}</span><strong>{markup(value)}</strong>'
        f"<small>{markup(remark)}</small></div>"
        for name, value, remark in items
    ]
    return Markup(f'<div class="tiles">{"".join(cells)}</div>')


def picture(pictures: Pictures, name: str, caption: str) -> Markup:
    """The figure called `name` with its caption, or nothing if it was not drawn."""
    if name not in pictures:
        return Markup("")
    return Markup(f"<figure>{pictures[name]}<figcaption>{markup(caption)}</figcaption></figure>")


def folded(summary: str, *parts: Any) -> Markup:
    """Detail that is closed at first and open in print."""
    inner = join(*parts)
    return Markup(f"<details><summary>{markup(summary)}</summary>{inner}</details>") if inner else Markup("")


def bullets(items: Iterable[Any]) -> Markup:
    """A list, or nothing."""
    lines = [f"<li>{markup(item)}</li>" for item in items]
    return Markup(f"<ul>{''.join(lines)}</ul>") if lines else Markup("")


def shape(row: Mapping[str, Any]) -> Markup:
    """Layers x width of a model, or a dash."""
    layers, width = row.get("n_layers"), row.get("d_model")
    return Markup(f"{layers} &times; {width}" if number(layers) and number(width) else "&ndash;")


def megabytes(value: Any) -> Markup | None:
    """A byte count in MB, or None."""
    found = number(value)
    return None if found is None else Markup(f"{found / 1e6:,.1f} MB")


def fingerprint(value: Any) -> str | None:
    """The first 16 digits of a hash, or None."""
    return str(value)[:16] if value else None


def listed(values: Any) -> str | None:
    """Values of a list with commas, or None if there are none."""
    return ", ".join(map(str, values)) if isinstance(values, (list, tuple)) and values else None


def section(name: str, title: str, *parts: Any) -> Markup:
    """A section with an anchor, or nothing if it has no content."""
    inner = join(*parts)
    return Markup(f'<section id="{name}"><h2>{markup(title)}</h2>\n{inner}\n</section>') if inner else Markup("")


def page(title: str, lead: Any, sections: Sequence[tuple[str, str, Markup]], footer: Any) -> str:
    """The whole document. `sections` are (anchor, short name for the contents line, HTML)."""
    present = [(name, label, body) for name, label, body in sections if body]
    links = "".join(f'<a href="#{name}">{markup(label)}</a>' for name, label, _ in present)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{markup(title)}</title><style>{_CSS}</style></head><body><main>",
            f"<header><h1>{markup(title)}</h1>{markup(lead)}<nav>{links}</nav></header>",
            *[body for _, _, body in present],
            f"<footer>{markup(footer)}</footer>",
            "</main></body></html>",
            "",
        ]
    )


_CSS = """
:root{--ink:#1d2129;--muted:#69717d;--grid:#e2e5e9;--paper:#fefefe;--page:#f6f7f9;--good:#00714f;--bad:#b23b00;--accent:#0072b2}
@media (prefers-color-scheme:dark){:root{--ink:#e7e9ee;--muted:#9aa3b0;--grid:#323842;--paper:#171a20;--page:#0f1115;
--good:#3ecf9a;--bad:#ff8a4c;--accent:#6cb8ec}figure svg{filter:brightness(1.18)}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:960px;margin:0 auto;padding:28px 18px 60px}
h1{font-size:1.65rem;line-height:1.2;margin:0 0 14px;letter-spacing:-.01em}
h2{font-size:1.2rem;margin:0 0 10px;letter-spacing:-.005em}
p{margin:.5em 0;max-width:74ch}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;margin:18px 0 8px;font-size:.88rem}
a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
section,.verdict{background:var(--paper);border:1px solid var(--grid);border-radius:10px;
padding:20px 22px;margin:16px 0}
.verdict{border-left:6px solid var(--muted)}
.verdict.good{border-left-color:var(--good)}.verdict.bad{border-left-color:var(--bad)}
.verdict h2{font-size:1.32rem;margin:0 0 4px}.good h2{color:var(--good)}.bad h2{color:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:14px 0 6px}
.tile{border:1px solid var(--grid);border-radius:8px;padding:10px 13px}
.tile>span,.tile small{display:block;color:var(--muted);font-size:.82rem;line-height:1.35}
.tile strong{display:block;font-size:1.5rem;font-weight:650;font-variant-numeric:tabular-nums;line-height:1.35}
figure{margin:14px 0 4px}figure svg{width:100%;height:auto;display:block;margin:0 auto}
figcaption{color:var(--muted);font-size:.86rem;margin-top:6px;max-width:80ch}
.scroll{overflow-x:auto;margin:12px 0}
table{border-collapse:collapse;font-size:.88rem;width:100%;font-variant-numeric:tabular-nums}
th{color:var(--muted);font-weight:600;text-align:left;white-space:nowrap}
th,td{padding:5px 12px 5px 0;border-bottom:1px solid var(--grid);vertical-align:top}
.n{text-align:right;white-space:nowrap}
th.n:last-child,td.n:last-child{padding-right:0}
.facts{display:grid;grid-template-columns:minmax(120px,auto) 1fr;gap:3px 20px;margin:12px 0;font-size:.92rem}
dt{color:var(--muted)}dd{margin:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
details{margin:10px 0}summary{cursor:pointer;color:var(--accent);font-size:.92rem}
pre{background:var(--page);border:1px solid var(--grid);border-radius:8px;padding:10px 13px;overflow-x:auto;
font-size:.85rem}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
sup{line-height:0}.nw{white-space:nowrap}
footer{color:var(--muted);font-size:.84rem;margin-top:22px}
@media (max-width:600px){main{padding:16px 10px 40px}section,.verdict{padding:14px 13px}
figure{overflow-x:auto}figure svg{min-width:600px}.facts{grid-template-columns:1fr;gap:0}dd{margin-bottom:6px}}
@media print{body{background:#fff;font-size:10.5pt}main{max-width:none;padding:0}nav{display:none}
section,.verdict{break-inside:avoid;border-color:#ccc}details>*{display:block}}
"""
