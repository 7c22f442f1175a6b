"""Normalisation and quality rules. Every rule has a name, a threshold and a counter of what it dropped.

Rules are cheap and conservative: they remove what isn't text that somebody wrote (tables of numbers, encoded data,
minified or generated files), not what is merely badly written.
"""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from isoflop.recipe import NotNegativeInt, Positive, Share

_LETTERS = bytes(b for b in range(256) if (chr(b).isascii() and chr(b).isalpha()) or b >= 0x80)
_WHITE = b" \t\n\r\x0b\x0c"
_CONTROLS = bytes(b for b in range(32) if b not in _WHITE) + b"\x7f"
_GENERATED = re.compile(
    r"do not (?:edit|modify)|auto(?:matically)?[- ]?generated|@generated|this file (?:was|is) generated", re.IGNORECASE
)


@dataclass(frozen=True)
class CleanOptions:
    """Thresholds of the quality rules; all values are assumptions, chosen on the sample by reading what they drop."""

    unicode_form: Literal["NFC", "none"] = "NFC"
    """Unicode normalisation; NFC joins letters and accents and changes nothing that a reader sees."""
    min_chars: NotNegativeInt = 50
    """Shorter documents are dropped."""
    min_letter_share: Share = 0.4
    """Letters (all of non-ASCII counts) among characters that aren't white space; tables and dumps have fewer."""
    max_word_bytes: Positive = 40.0
    """Mean length of words in ASCII text; encoded data has hundreds."""
    max_repeated_share: Share = 0.5
    """Share of characters in lines that occurred before, in documents of 20 lines or more."""
    max_mean_line_chars: Positive = 200.0
    """Mean length of the lines of code; minified files have thousands."""
    max_control_share: Share = 0.002
    """Control and replacement characters; binary data has more."""
    drop_generated: bool = True
    """Drop code that says in its first lines that a program wrote it."""
    code_domains: tuple[str, ...] = ("code",)
    """Domains to which the rules for code apply."""


def normalise(text: str, unicode_form: str = "NFC") -> str:
    """Line breaks as \\n, no byte order mark, Unicode in one form; nothing else is touched."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = text.removeprefix("\ufeff")
    if unicode_form != "none" and not text.isascii():
        text = unicodedata.normalize(unicode_form, text)  # type: ignore[arg-type]
    return text


def reason_to_drop(text: str, domain: str, options: CleanOptions) -> str | None:
    """Name of the first rule that `text` breaks, or None if it may stay."""
    if len(text.strip()) < options.min_chars:
        return "too_short"
    data = text.encode()
    n_bytes = len(data)
    if n_bytes - len(data.translate(None, _CONTROLS)) + text.count("\ufffd") > options.max_control_share * n_bytes:
        return "not_text"
    solid = data.translate(None, _WHITE)
    n_letters = len(solid) - len(solid.translate(None, _LETTERS))
    if n_letters < options.min_letter_share * len(solid):
        return "few_letters"
    if text.isascii() and len(solid) > options.max_word_bytes * len(text.split()):
        return "encoded_data"
    lines = text.split("\n")
    if domain in options.code_domains:
        if len(text) > options.max_mean_line_chars * len(lines):
            return "minified"
        if options.drop_generated and _GENERATED.search(text[:1000]):
            return "generated"
    if len(lines) >= 20 and _repeated_chars(lines) > options.max_repeated_share * len(text):
        return "repeated_lines"
    return None


def _repeated_chars(lines: list[str]) -> int:
    counts = Counter(line for line in lines if line.strip())
    return sum((count - 1) * len(line) for line, count in counts.items() if count > 1)
