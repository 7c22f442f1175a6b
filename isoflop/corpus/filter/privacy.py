"""Personal data in texts -> neutral stand-ins: addresses, numbers of telephones, cards and identity papers.

Source: e-mail and public IP addresses as in FineWeb (arXiv 2406.17557, appendix; datatrove's PIIFormatter). Further
kinds are ours, and each needs more than a shape: card numbers the Luhn digit (ISO/IEC 7812) and a known prefix,
Chinese identity numbers the GB 11643 check digit and a real date, telephone numbers an international prefix or the
form of a mainland mobile number. Names and postal addresses are not looked for.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

_LOCAL = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!#$%&'*+/=?^_`{|}~.-")
_LOCAL_CHARS = 64  # longest part before the @, RFC 5321
_DOMAIN = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
)
_DOMAIN_CHARS = 255
_NUMBERS = re.compile(
    r"(?<![\w.])(?:"
    r"(?P<ip>(?:\d{1,3}\.){3}\d{1,3})(?!\.?\d)"
    r"|(?P<id>[1-9]\d{16}[\dXx])(?!\w)"
    r"|(?P<card>(?:\d{4}[ -]){3}\d{1,7}|\d{13,19}|3[47]\d{2}[ -]\d{6}[ -]\d{5})(?!\w)"
    r"|(?P<mobile>1[3-9]\d{9})(?!\w)"
    r"|(?P<phone>\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4})(?!\w)"
    r")"
)
_STAND_INS = {
    "email": "email@example.com",
    "ip": "192.0.2.1",  # reserved for documentation, RFC 5737
    "id": "000000000000000000",
    "card": "0000 0000 0000 0000",
    "mobile": "10000000000",
    "phone": "+00 000 0000000",
}


@dataclass(frozen=True)
class PrivacyOptions:
    """What is masked."""

    enabled: bool = True
    """Mask personal data."""
    kinds: tuple[str, ...] = ("email", "ip", "id", "card", "mobile", "phone")
    """Kinds to mask, of these six."""


def mask_personal(text: str, options: PrivacyOptions) -> tuple[str, Counter[str]]:
    """The text with stand-ins, and how many of each kind were masked."""
    counts: Counter[str] = Counter()
    if "email" in options.kinds and "@" in text:
        text = _mask_emails(text, counts)

    def replace(match: re.Match[str]) -> str:
        kind = match.lastgroup or ""
        if kind not in options.kinds or not _VALID[kind](match.group()):
            return match.group()
        counts[kind] += 1
        return _STAND_INS[kind]

    return _NUMBERS.sub(replace, text), counts


def _mask_emails(text: str, counts: Counter[str]) -> str:
    """From one @ to the next, outwards from each: time grows with the length of the text alone."""
    parts, done, at = [], 0, text.find("@")
    while at >= 0:
        start = at
        while start > done and at - start < _LOCAL_CHARS and text[start - 1] in _LOCAL:
            start -= 1
        start += len(text[start:at]) - len(text[start:at].lstrip("."))
        domain = _DOMAIN.match(text, at + 1, at + 1 + _DOMAIN_CHARS) if start < at and text[at - 1] != "." else None
        if domain:
            parts += [text[done:start], _STAND_INS["email"]]
            done = domain.end()
            counts["email"] += 1
        at = text.find("@", max(at + 1, done))
    return "".join(parts) + text[done:] if parts else text


def _is_public_ip(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _is_card(text: str) -> bool:
    digits = [int(char) for char in text if char.isdigit()]
    if not 13 <= len(digits) <= 19 or digits[0] not in (2, 3, 4, 5, 6) or len(set(digits)) < 4:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_identity(text: str) -> bool:
    weights = [pow(2, 17 - place, 11) for place in range(17)]
    total = sum(int(char) * weight for char, weight in zip(text, weights))
    try:
        born = date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    return 1850 <= born.year <= 2100 and "10X98765432"[total % 11] == text[-1].upper()


def _is_phone(text: str) -> bool:
    return 8 <= sum(char.isdigit() for char in text) <= 15  # E.164


_VALID: dict[str, Callable[[str], bool]] = {
    "ip": _is_public_ip,
    "id": _is_identity,
    "card": _is_card,
    "mobile": lambda text: True,
    "phone": _is_phone,
}
