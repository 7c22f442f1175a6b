"""How every figure looks: one palette, one type size, readable log axes, files that are the same on every machine.

Figures are `matplotlib.figure.Figure` objects made without pyplot, so that drawing leaves no global state behind.
matplotlib belongs to the `report` extra and is imported only here and only inside functions.
"""

import html
import importlib.util
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

# Ink colours are unusual hex values on purpose: `svg_text` swaps them for CSS variables, for dark pages.
INK, MUTED, GRID, PAPER = "#1d2129", "#69717d", "#e2e5e9", "#fefefe"
# Okabe and Ito's palette: distinct under the common colour deficiencies.
BLUE, VERMILION, GREEN, AMBER, SKY, MAUVE = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#cc79a7"
# Budgets are ordered, so their colours are: lightness rises from the smallest to the largest.
RAMP = ("#2f56b0", "#7449b6", "#b73c90", "#dc4c5c", "#ee7b2f")
OCHRE = "#b97700"  # amber, darkened until it can be read as text
NAMED = (BLUE, VERMILION, GREEN, AMBER, MAUVE, SKY, "#8c6bb1", "#7f7f7f")  # of things without an order
LAW_COLOR = {"surface_log_huber": BLUE, "surface_varpro": GREEN, "lstar": OCHRE}
WIDTH = 8.4  # inches; shown at 840 CSS pixels in a README, so one point is about one pixel
PNG_DPI = 200

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: no figure depends on the machine's fonts
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10.0,
    "axes.labelsize": 10.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "figure.facecolor": PAPER,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "xtick.major.size": 4.0,
    "ytick.major.size": 0.0,
    "xtick.minor.size": 2.0,
    "ytick.minor.size": 0.0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "path",
    "svg.hashsalt": "isoflop",
    "savefig.facecolor": PAPER,
}


def installed() -> bool:
    """Whether figures can be drawn here."""
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def style() -> Iterator[None]:
    """The look of every figure, for the duration of a block.

    Raises:
        DataError: matplotlib is not installed.
    """
    if not installed():
        raise DataError("figures need matplotlib, which is not installed: pip install isoflop[report]")
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(height: float, width: float = WIDTH) -> "Figure":
    """An empty figure that lays itself out. Units: inches. Call inside `style()`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr]
    return figure


def save(figure: "Figure", path: str | Path) -> Path:
    """Write a figure as .svg or .png, in one step and without a date: the same input gives the same bytes.

    Raises:
        DataError: another ending than .svg or .png.
    """
    path = Path(path)
    if path.suffix not in (".svg", ".png"):
        raise DataError(f"figure file {path.name} must end in .svg or .png")
    buffer = BytesIO()
    metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None}
    with style():
        figure.savefig(buffer, format=path.suffix[1:], dpi=PNG_DPI, metadata=metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "wb") as file:
        file.write(buffer.getvalue())
    Path(temporary).chmod(0o644)
    return Path(temporary).replace(path)


def svg_text(figure: "Figure", name: str, label: str) -> str:
    """The figure as an <svg> element for an HTML page: no prolog, ids made unique by `name`, ink from CSS variables."""
    buffer = StringIO()
    with style():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    for color, variable in ((INK, "ink"), (MUTED, "muted"), (GRID, "grid"), (PAPER, "paper")):
        text = text.replace(color, f"var(--{variable}, {color})")
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    shown = f'role="img" aria-label="{html.escape(label)}" style="max-width:{100 * figure.get_figwidth():.0f}px"'
    return text.replace("<svg ", f"<svg {shown} ", 1).strip()


def name_colors(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name, the same for the same list."""
    return {name: NAMED[index % len(NAMED)] for index, name in enumerate(names)}


def literal(text: str, most: int = 40) -> str:
    """Text from outside as a label: no mathematics between dollars, no letters that the font lacks, cut to `most`."""
    from matplotlib.font_manager import findfont, get_font

    with style():
        font = get_font(findfont("DejaVu Sans"))
    shown = text if len(text) <= most else text[: most - 3] + "..."
    return "".join(c if font.get_char_index(ord(c)) else "\ufffd" for c in shown).replace("$", r"\$")


def budget_colors(budgets: Sequence[float]) -> dict[float, str]:
    """One colour per budget, in order."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    ramp = LinearSegmentedColormap.from_list("budgets", RAMP)
    steps = max(1, len(budgets) - 1)
    return {budget: to_hex(ramp(index / steps)) for index, budget in enumerate(sorted(budgets))}


def log_axis(axes: "Axes", which: str, kind: str = "power") -> None:
    """Make an axis logarithmic with ticks a reader can use: 1, 2, 5 within a decade or two, powers of ten beyond.

    `kind` is "power" (10^12, for FLOPs) or "count" (200k, 1.5M: model scales and tokens).
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    getattr(axes, f"set_{which}scale")("log")
    low, high = getattr(axes, f"get_{which}lim")()
    decades = math.log10(high / low) if low > 0 and high > low else 1.0
    subs = (1.0, 2.0, 5.0) if decades < 1.6 else (1.0, 3.0) if decades < 2.6 and kind == "count" else (1.0,)
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=12))
    axis.set_minor_locator(LogLocator(base=10, subs=tuple(range(1, 10)), numticks=80))
    axis.set_major_formatter(FuncFormatter(lambda value, _: power_text(value) if kind == "power" else count(value)))
    axis.set_minor_formatter(NullFormatter())


def light_grid(axes: "Axes", which: str = "y") -> None:
    """Hairlines behind the data."""
    axes.grid(visible=True, which="major", axis=which, color=GRID, linewidth=0.8)  # type: ignore[arg-type]


def note(axes: "Axes", text: str, place: tuple[float, float], points: tuple[float, float], **look: Any) -> "Annotation":
    """Write beside a place of the data, shifted by so many points to the right and up."""
    return axes.annotate(text, place, xytext=points, textcoords="offset points", **{"fontsize": 9.5, **look})


def subtitle(axes: "Axes", title: str, text: str) -> None:
    """A title and, below it, one quieter line of at most about 100 characters."""
    axes.set_title(title, pad=26)
    line = note(axes, text, (0, 1), (0, 10), xycoords="axes fraction", color=MUTED)
    line.set_in_layout(False)  # a long line must not squeeze the plot


def power_text(value: float, digits: int = 1) -> str:
    """1.2e12 as mathtext: 1.2 x 10^12, without a mantissa of exactly one."""
    if value <= 0:
        return "0"
    exponent = math.floor(math.log10(value) + 1e-9)
    mantissa = round(value / 10**exponent, digits)
    if mantissa >= 10:
        mantissa, exponent = mantissa / 10, exponent + 1
    head = "" if mantissa == 1 else f"{mantissa:g}" + r"\times "
    return f"${head}10^{{{exponent}}}$"


def number(value: Any) -> float | None:
    """The finite number in `value`, or None."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return None
    try:
        converted = float(value)
    except (TypeError, ValueError):
        return None
    return converted if math.isfinite(converted) else None


def count(value: float) -> str:
    """1234567 as 1.2M: three significant digits at most, suffixes k M B T."""
    if value == 0:
        return "0"
    for suffix, unit in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * unit:
            return f"{value / unit:.3g}{suffix}" if abs(value) < 999.5 * unit else f"{value / unit:.0f}{suffix}"
    return f"{value:.3g}"


def halo(width: float = 2.6) -> list[Any]:
    """A paper-coloured outline that keeps a label readable on top of lines."""
    from matplotlib.patheffects import Normal, Stroke

    return [Stroke(linewidth=width, foreground=PAPER), Normal()]


def spread(wanted: Iterable[float], gap: float) -> list[float]:
    """Move label positions apart until neighbours are `gap` apart, in order and close to where they were."""
    values = list(wanted)
    order = sorted(range(len(values)), key=values.__getitem__)
    groups: list[list[Any]] = []  # [members, centre]
    for index in order:
        groups.append([[index], values[index]])
        while len(groups) > 1:
            (upper, above), (lower, below) = groups[-1], groups[-2]
            if above - below >= gap * (len(upper) + len(lower)) / 2:
                break
            members = lower + upper
            groups[-2:] = [[members, sum(values[i] for i in members) / len(members)]]
    placed = [0.0] * len(values)
    for members, centre in groups:
        for rank, index in enumerate(members):
            placed[index] = centre + gap * (rank - (len(members) - 1) / 2)
    return placed
