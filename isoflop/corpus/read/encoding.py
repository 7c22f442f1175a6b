"""Bytes of a text file -> text, with the encoding found out; bytes that are no text are refused with the reason.

Order: byte order mark, strict UTF-8, UTF-16 by its zero bytes, what the file or its owner declares, detection
(resiliparse), Windows-1252 if the result reads like text. UTF-8 with a few damaged bytes is repaired with U+FFFD, and
the repair is reported.
"""

import codecs
from dataclasses import dataclass

MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order marks and what they say; those of UTF-32 begin with those of UTF-16."""
_SAMPLE_BYTES = 131_072
_GOOD_PER_BAD = 10  # assumption: damaged UTF-8 has at least so many good characters beyond ASCII per bad byte
_CONTROLS = bytes(code for code in range(32) if code not in b"\t\n\r\f\x0b\x1b") + b"\x7f"


class NotText(ValueError):
    """The bytes are no text in a known encoding; the message says why."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Text with how it was read."""

    text: str
    encoding: str
    n_repaired: int = 0
    """Damaged places that became U+FFFD."""


def decode_text(data: bytes, declared: str = "") -> Decoded:
    """Text of a whole file or page, without byte order mark. Raises NotText."""
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return _decode_marked(data[len(mark) :], encoding)
    n_zero = data.count(0)
    if n_zero * 5 > len(data):  # UTF-16 of Latin text is valid UTF-8 with zeros
        return _decode_zeros(data)
    if n_zero:
        raise NotText(f"binary: {n_zero} NUL bytes")
    try:
        return Decoded(data.decode("utf-8"), "utf-8")
    except UnicodeDecodeError as problem:
        return _decode_other(data, declared, problem)


def _decode_marked(data: bytes, encoding: str) -> Decoded:
    try:
        return Decoded(data.decode(encoding), encoding)
    except UnicodeDecodeError as error:
        text = data.decode(encoding, "replace")
        n_bad = text.count("\ufffd")
        if n_bad * _GOOD_PER_BAD > len(text):
            raise NotText(f"byte order mark says {encoding}, but byte {error.start} is not") from error
        return Decoded(text, encoding, n_bad)


def _decode_zeros(data: bytes) -> Decoded:
    encoding = "utf-16-le" if data[1::2].count(0) > data[::2].count(0) else "utf-16-be"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise NotText(f"binary: {data.count(0)} NUL bytes") from error
    if "\0" in text:
        raise NotText(f"binary: {data.count(0)} NUL bytes")
    return Decoded(text, encoding)


def _decode_other(data: bytes, declared: str, problem: UnicodeDecodeError) -> Decoded:
    repaired = data.decode("utf-8", "replace")
    n_bad = repaired.count("\ufffd") - data.count(b"\xef\xbf\xbd")
    n_good = len(repaired) - len(repaired.encode("ascii", "ignore")) - n_bad
    if n_good >= _GOOD_PER_BAD * n_bad or problem.start >= len(data) - 3:  # the last character may be cut
        return Decoded(repaired, "utf-8", n_bad)
    for encoding in dict.fromkeys((declared, _detect(data), "windows-1252")):
        if not encoding or encoding.lower().replace("-", "") == "utf8":
            continue
        try:
            text = data.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
        if _reads_like_text(data, text):
            return Decoded(text, encoding)
    raise NotText(f"not UTF-8 at byte {problem.start}, and no other encoding fits")


def _detect(data: bytes) -> str:
    try:
        from resiliparse.parse.encoding import detect_encoding
    except ImportError:
        return ""
    return detect_encoding(data[:_SAMPLE_BYTES]) or ""


def _reads_like_text(data: bytes, text: str) -> bool:
    """Few control characters; and where most characters are beyond ASCII, few of them are odd signs."""
    n_controls = len(data) - len(data.translate(None, _CONTROLS))
    beyond = [char for char in text[:_SAMPLE_BYTES] if char > "\x7f"]
    letters = sum(char.isalpha() for char in beyond)
    odd = sum("\x80" <= char <= "\xbf" for char in beyond)
    return n_controls * 500 <= len(data) and odd * 2 <= max(letters, len(text) // 50)


def is_encodable(text: str) -> bool:
    """Whether it is text that UTF-8 can write: a lone half of a surrogate pair, as broken JSON may hold, is not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
