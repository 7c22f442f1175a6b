"""How short answers are compared: case and punctuation aside, bags of words, numbers, boxes of LaTeX."""

import re
import string
from collections.abc import Sequence
from fractions import Fraction

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normal(text: str, ignored: Sequence[str] = (), *, punctuation: bool = True) -> str:
    """Lower case, without what the patterns match and, unless said, without ASCII punctuation."""
    for pattern in ignored:
        text = re.sub(pattern, "", text)
    text = text.lower()
    return text.translate(_PUNCTUATION) if punctuation else text


def is_any(output: str, golds: Sequence[str], ignored: Sequence[str] = ()) -> bool:
    """Whether the output equals one of the answers, both in normal form."""
    return normal(output, ignored) in {normal(gold, ignored) for gold in golds}


def cut(output: str, stops: Sequence[str]) -> str:
    """The output up to the first stop text in it."""
    return output[: min((at for stop in stops if (at := output.find(stop)) >= 0), default=len(output))]


def number(text: str) -> Fraction | None:
    """The number that a short text is: thousands separators, percent, fractions and currency signs allowed."""
    plain = text.strip().strip("$").replace("\\%", "%").rstrip(".").strip()
    if re.match(r"[-+]?\d{1,3}(,\d{3})+(?!\d|,)", plain):
        plain = plain.replace(",", "")
    percent = plain.endswith("%")
    latex = re.fullmatch(r"(-?)\\d?frac\{(-?\d+)\}\{(-?\d+)\}", plain)
    if latex:
        plain = f"{latex[1]}{latex[2]}/{latex[3]}"
    if not re.fullmatch(r"[-+]?(\d+(\.\d*)?|\.\d+)(/\d+)?%?", plain) or len(plain) > 100:
        return None
    top, _, bottom = plain.rstrip("%").partition("/")
    try:
        value = Fraction(top) / Fraction(bottom or 1)
    except ZeroDivisionError:
        return None
    return value / 100 if percent else value


def last_number(text: str) -> str:
    """The last run of digits that reads as a number, or nothing."""
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?|-?\.\d+", text)
    return found[-1].rstrip(",") if found else ""


def last_box(text: str) -> str | None:
    """What the last `\\boxed{...}` holds, with balanced braces."""
    at = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if at < 0:
        return None
    rest = text[at:].partition("{")
    if rest[0] not in ("\\boxed", "\\fbox"):  # "\boxed 5"
        return text[at:].partition(" ")[2].partition("$")[0].strip() or None
    depth, inside = 1, rest[2]
    for i, letter in enumerate(inside):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return inside[:i]
    return None
