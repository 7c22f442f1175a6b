"""Where no merge may cross: the two rule sets as regular expressions for the library, and the alphabet of bytes.

Source: DeepSeek LLM (arXiv 2401.02954) section 2.1, DeepSeek-V3 (arXiv 2412.19437) section 4.1; character ranges as in
the released tokenizers. `tokens/fast/cuts.py` makes the same cuts from the same classes without a regular expression.
"""

from typing import Literal

N_BYTES = 256

Rules = Literal["v1", "v3"]

# Disjoint character classes. Escapes are resolved by Python, so both regex engines see the same characters.
LETTER = (  # Latin, Greek, Cyrillic, Armenian, Georgian, Cherokee, full-width Latin
    "A-Za-z\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386"
    "\u0388-\u03f5\u03f7-\u0481\u048a-\u0556\u0560-\u0588\u10a0-\u10fa\u10fc-\u10ff\u13a0-\u13ff\u1c80-\u1cbf"
    "\u1d00-\u1dbf\u1e00-\u1fff\u2c00-\u2c7f\ua640-\ua69f\ua720-\ua7ff\uab30-\uabbf\ufb00-\ufb17\uff21-\uff3a\uff41-\uff5a"
)
PUNCTUATION = r"!-/:-@\[-`{-~" + "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff5e\u2018-\u201f\u3000-\u3002"
DIGIT = "0-9\u0660-\u0669\u06f0-\u06f9\u07c0-\u07c9\uff10-\uff19"
SPACE = "\t\x0b\x0c \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f"
CJK = (  # the paper's U+0800-U+9FA5 and Hangul, less what the classes above take out of them
    "\u0800-\u109f\u10fb\u1100-\u139f\u1400-\u167f\u1681-\u1c7f\u1cc0-\u1cff\u1dc0-\u1dff\u200b-\u2017\u2020-\u2027"
    "\u202a-\u202e\u2030-\u205e\u2060-\u2bff\u2c80-\u2fff\u3003-\u9fa5\uac00-\ud7ff"
)
PIECES = "|".join(
    (
        r"[\r\n]",
        f"[{SPACE}]?[{LETTER}]+",
        f"[{SPACE}]?[{PUNCTUATION}]+",
        f"[{CJK}]+",
        f"[{DIGIT}]",
        f"[{SPACE}]+(?=[{SPACE}][{LETTER}{PUNCTUATION}])",  # the last space belongs to the word after it
        f"[{SPACE}]+",
        rf"[^\r\n{SPACE}{LETTER}{PUNCTUATION}{CJK}{DIGIT}]+",
    )
)
CJK_V3 = "\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff"
V3_SPLITS = (  # one pass each, in this order; \p classes are resolved by the library
    r"\p{N}{1,3}",
    f"[{CJK_V3}]+",
    "|".join(
        (
            r"[!-/:-@\[-`{-~][A-Za-z]+",
            r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
            r" ?[\p{P}\p{S}]+[\r\n]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",
            r"\s+",
        )
    ),
)


def byte_symbols() -> list[str]:
    """The printable character that stands for each of the 256 bytes in a byte-level vocabulary.

    Source: GPT-2. Bytes that print as themselves in Latin-1 keep their character; the others get U+0100 onwards.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(N_BYTES)]
