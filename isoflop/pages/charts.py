"""Charts of the corpus report as inline SVG: no scripts, no files, colours of the page's light or dark theme.

Every function takes plain numbers and returns `Markup`; text is escaped here. A drawing is 900 units wide.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

from isoflop.pages.html import Markup

WIDTH = 900
# Okabe and Ito's palette: distinct under the common colour deficiencies.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#8c6bb1", "#7f7f7f")

Row = tuple[str, float, str]
"""Name, value, what to write beside the bar."""


def color_of(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name, the same for the same list."""
    return {name: COLORS[index % len(COLORS)] for index, name in enumerate(names)}


def legend(colors: Mapping[str, str]) -> Markup:
    """Names with their colours."""
    items = "".join(f'<span><i style="background:{color}"></i>{escape(name)}</span>' for name, color in colors.items())
    return Markup(f'<div class="legend">{items}</div>')


def flow(
    stages: Sequence[tuple[str, Mapping[str, float], str, str]], colors: Mapping[str, str], *, height: int = 300
) -> Markup:
    """Columns whose segments shrink from stage to stage: (title, bytes by name, label, what was lost before)."""
    most = max((sum(values.values()) for _, values, _, _ in stages), default=0.0)
    if not most:
        return Markup("")
    bar, top = 26, 34
    step = (WIDTH - 130) / max(1, len(stages) - 1)
    parts, before = [], None
    for number, (title, values, label, lost) in enumerate(stages):
        x, y, here = 52 + number * step, float(top), {}
        for name, color in colors.items():
            size = height * values.get(name, 0.0) / most
            here[name] = (y, size)
            if size > 0:
                parts.append(_rect(x, y, bar, size, color, f"{name}: {label_bytes(values[name])}", radius=1.5))
            y += size
        if before is not None:
            left = 52 + (number - 1) * step + bar
            parts += [_ribbon(left, before[name], x, here[name], colors[name]) for name in colors]
            parts.append(_fade(left, before, x, here))
        middle = x + bar / 2
        parts.append(_text(middle, 16, title, "t b"))
        parts.append(_text(middle, y + 18, label, "t"))
        if lost:
            parts.append(_text(middle, y + 35, lost, "t m"))
        before = here
    return _svg(height + top + 44, parts)


def bars(rows: Sequence[Row], *, color: str = COLORS[0], colors: Mapping[str, str] | None = None) -> Markup:
    """Horizontal bars with names on the left and numbers on the right."""
    most = max((value for _, value, _ in rows), default=0.0)
    if not most:
        return Markup("")
    parts = []
    for number, (name, value, label) in enumerate(rows):
        y, length = 4 + 26 * number, 440 * value / most
        parts.append(_text(236, y + 15, name, "e"))
        parts.append(_rect(248, y + 3, max(1.5, length), 16, (colors or {}).get(name, color), f"{name}: {label}"))
        parts.append(_text(256 + max(1.5, length), y + 15, label, "s m"))
    return _svg(8 + 26 * len(rows), parts)


def shares(rows: Sequence[tuple[str, Mapping[str, float], str]], colors: Mapping[str, str]) -> Markup:
    """Bars of 100 % cut up by share: (name, value by part, what to write beside it)."""
    parts = []
    for number, (name, values, label) in enumerate(rows):
        y, x, total = 4 + 28 * number, 190.0, sum(values.values()) or 1.0
        parts.append(_text(178, y + 16, name, "e"))
        for part, color in colors.items():
            length = 520 * values.get(part, 0.0) / total
            if length > 0:
                share = values[part] / total
                parts.append(_rect(x, y + 2, max(0.5, length - 1), 19, color, f"{part}: {share:.1%}", radius=1.5))
                if length > 44:
                    parts.append(_text(x + length / 2, y + 16, f"{share:.0%}", "t w"))
            x += length
        parts.append(_text(722, y + 16, label, "s m"))
    return _svg(8 + 28 * len(rows), parts)


def histograms(
    panels: Sequence[tuple[str, Mapping[int, float], Mapping[int, float]]], colors: Mapping[str, str]
) -> Markup:
    """Small panels of counts by power of two, in bytes: before as an outline, after filled."""
    if not panels:
        return Markup("")
    low = min(key for _, before, after in panels for key in [*before, *after])
    high = max(key for _, before, after in panels for key in [*before, *after])
    columns = min(3, len(panels))
    wide, tall = (WIDTH - 20 * (columns - 1)) / columns, 150
    parts = []
    for number, (name, before, after) in enumerate(panels):
        x0, y0 = (number % columns) * (wide + 20), (number // columns) * (tall + 46) + 24
        most = max([*before.values(), *after.values(), 1])
        step = wide / (high - low + 1)
        parts.append(_text(x0, y0 - 8, name, "s b"))
        for bin_ in range(low, high + 1):
            x = x0 + (bin_ - low) * step
            for values, css in ((before, "out"), (after, "")):
                size = tall * 0.9 * values.get(bin_, 0.0) / most
                if size > 0:
                    title = f"{_size(bin_)} to {_size(bin_ + 1)}: {values[bin_]:,.0f} documents"
                    fill = "none" if css else colors[name]
                    parts.append(_rect(x + 1, y0 + tall - size, step - 2, size, fill, title, css=css))
        parts.append(f'<line class="a" x1="{x0:.1f}" x2="{x0 + wide:.1f}" y1="{y0 + tall}" y2="{y0 + tall}"/>')
        for bin_ in range(low, high + 1):
            if bin_ % 4 == 0:
                parts.append(_text(x0 + (bin_ - low) * step, y0 + tall + 15, _size(bin_), "t m"))
    rows = -(-len(panels) // columns)
    return _svg(rows * (tall + 46) + 4, parts)


def curve(
    points: Sequence[tuple[float, float]],
    *,
    mark: tuple[float, str],
    counts: Sequence[tuple[float, float]] = (),
    x_label: str,
    y_label: str,
) -> Markup:
    """A probability over 0 to 1 with a marked place; `counts` (place, number) as bars behind it."""
    left, right, top, height = 60, WIDTH - 30, 16, 220

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * x, top + height * (1 - y)

    parts = []
    most = max((count for _, count in counts), default=0.0)
    width = (right - left) / max(20, len(counts)) * 0.9
    for x, count in counts:
        px, py = place(x, 0.92 * count / most)
        parts.append(_rect(px - width / 2, py, width, top + height - py, COLORS[5], f"{count:,.0f} pairs", css="soft"))
    for tick in (0, 0.25, 0.5, 0.75, 1):
        px, py = place(tick, tick)
        parts.append(f'<line class="g" x1="{left}" x2="{right}" y1="{py:.1f}" y2="{py:.1f}"/>')
        parts += [_text(left - 8, py + 4, f"{tick:g}", "e m"), _text(px, top + height + 18, f"{tick:g}", "t m")]
    x, _ = place(mark[0], 0)
    parts.append(f'<line class="k" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + height}"/>')
    parts.append(_text(x - 7, top + 14, mark[1], "e m"))
    line = " ".join(f"{px:.1f},{py:.1f}" for px, py in (place(*point) for point in points))
    parts.append(f'<polyline points="{line}" fill="none" stroke="{COLORS[1]}" stroke-width="2.5"/>')
    parts.append(_text((left + right) / 2, top + height + 38, x_label, "t m"))
    parts.append(_text(left, top - 4, y_label, "s m"))
    return _svg(top + height + 46, parts)


def curriculum(stages: Sequence[tuple[float, float, Mapping[str, float]]], colors: Mapping[str, str]) -> Markup:
    """Shares over training: (start, part, share by name), each stage a block as wide as its part."""
    left, wide, top, height = 46, WIDTH - 66, 10, 170
    parts = []
    for start, part, values in stages:
        x, width, y = left + wide * start, wide * part, float(top)
        for name, color in colors.items():
            size = height * values.get(name, 0.0)
            if size > 0:
                title = f"{name}: {values[name]:.1%} from {start:.0%} to {start + part:.0%} of training"
                parts.append(_rect(x + 0.5, y, max(1.0, width - 1), size, color, title, radius=1))
                if size > 16 and width > 60:
                    parts.append(_text(x + width / 2, y + size / 2 + 5, f"{values[name]:.0%}", "t w"))
            y += size
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_text(left + wide * tick, top + height + 18, f"{tick:.0%}", "t m"))
    parts.append(_text(left + wide / 2, top + height + 36, "part of training", "t m"))
    return _svg(top + height + 42, parts)


def label_bytes(value: float) -> str:
    """12.3 MB, 4.56 GB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e3:.3g} kB"


def _size(bin_: int) -> str:
    for unit, power in (("M", 20), ("k", 10)):
        if bin_ >= power:
            return f"{1 << (bin_ - power)} {unit}B"
    return f"{1 << bin_} B"


def _ribbon(x0: float, left: tuple[float, float], x1: float, right: tuple[float, float], color: str) -> str:
    (y0, h0), (y1, h1) = left, right
    if h0 <= 0 or h1 <= 0:
        return ""
    kept, m = min(h0, h1), (x0 + x1) / 2
    path = f"M{x0:.1f} {y0:.1f}C{m:.1f} {y0:.1f} {m:.1f} {y1:.1f} {x1:.1f} {y1:.1f}V{y1 + h1:.1f}"
    path += f"C{m:.1f} {y1 + h1:.1f} {m:.1f} {y0 + kept:.1f} {x0:.1f} {y0 + kept:.1f}Z"
    return f'<path d="{path}" fill="{color}" opacity=".28"/>'


def _fade(
    x0: float, left: Mapping[str, tuple[float, float]], x1: float, right: Mapping[str, tuple[float, float]]
) -> str:
    """What is lost leaves each segment at its lower edge and thins out."""
    parts = []
    for name, (y0, h0) in left.items():
        lost = h0 - min(h0, right[name][1])
        if lost > 0.4:
            y, end = y0 + h0 - lost, x0 + min(70.0, (x1 - x0) * 0.35)
            low, m = y + lost, (x0 + end) / 2
            path = f"M{x0:.1f} {y:.1f}C{m:.1f} {y:.1f} {end:.1f} {low:.1f} {end:.1f} {low + 8:.1f}"
            path += f"C{end:.1f} {low + 4:.1f} {x0 + 20:.1f} {low:.1f} {x0:.1f} {low:.1f}Z"
            parts.append(f'<path d="{path}" class="lost"/>')
    return "".join(parts)


def _rect(
    x: float, y: float, width: float, height: float, fill: str, title: str, *, css: str = "", radius: float = 2
) -> str:
    kind = f' class="{css}"' if css else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius}" fill="{fill}"{kind}>'
        f"<title>{escape(title)}</title></rect>"
    )


def _text(x: float, y: float, text: str, css: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}">{escape(text)}</text>'


def _svg(height: float, parts: Sequence[str]) -> Markup:
    if not math.isfinite(height):
        raise AssertionError("a chart has a height")
    return Markup(
        f'<figure class="chart"><svg viewBox="0 0 {WIDTH} {height:.0f}" role="img">{"".join(parts)}</svg></figure>'
    )


CSS = """
.chart svg text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--ink);
font-variant-numeric:tabular-nums}
.chart svg .t{text-anchor:middle}.chart svg .e{text-anchor:end}
.chart svg .m{fill:var(--muted)}.chart svg .b{font-weight:650}
.chart svg .w{fill:#fff;font-weight:600}.chart svg .a{stroke:var(--muted)}.chart svg .g{stroke:var(--grid)}
.chart svg .k{stroke:var(--muted);stroke-dasharray:4 4}.chart svg .out{stroke:var(--muted);stroke-width:1.1}
.chart svg .soft{opacity:.45}.chart svg .lost{fill:var(--muted);opacity:.2}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:.88rem;margin:6px 0 2px}
.legend i{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px}
.samples{display:grid;gap:10px;margin:10px 0}
.sample{border:1px solid var(--grid);border-left:4px solid var(--accent);border-radius:8px;padding:8px 12px}
.sample small{color:var(--muted);display:block;overflow-wrap:anywhere}
.sample pre{white-space:pre-wrap;overflow-wrap:anywhere;border:0;background:none;padding:0;margin:4px 0 0;
max-height:11.5em;
overflow-y:auto;font-size:.84rem;line-height:1.45}
.gone{border-left-color:var(--bad)}
h3{font-size:1rem;margin:20px 0 4px}
"""
"""Added to the style of the page."""
