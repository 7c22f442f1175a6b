"""Values that cross between processes which do not trust each other: tagged JSON in frames with a length.

Plain data (numbers, text, bytes, lists, tuples, dicts, sets) is copied; subclasses of them become the plain type, so no
comparison ever runs a method that the other side wrote. Everything else crosses as a number, a handle on an object
that stays where it is. Integers beyond 53 bits travel in hexadecimal, which no digit limit of Python bounds.
"""

import json
import math
import os
import struct
from collections.abc import Callable, KeysView
from decimal import Decimal
from fractions import Fraction
from typing import Any

DEPTH = 200  # assumption: levels of nesting; deeper values are refused, so that no decoder runs out of stack
HEADER = struct.Struct(">I")


class ValueRefused(ValueError):
    """A value, or bytes in place of one, that does not cross."""


def encode(value: Any, handle: Callable[[Any], int] | None = None, depth: int = DEPTH) -> Any:
    """JSON of `value`; `handle` numbers what is not plain data, and without it such values are refused."""
    if depth == 0:
        raise ValueRefused(f"a value is nested more than {DEPTH} levels deep")
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value) if abs(value) < 2**53 else ["i", hex(value)]
    if isinstance(value, float):
        return ["f", float(value).hex()]
    if isinstance(value, complex):
        return ["c", value.real.hex(), value.imag.hex()]
    if isinstance(value, (bytes, bytearray)):
        return ["b" if isinstance(value, bytes) else "B", value.hex()]
    if isinstance(value, dict):
        pairs = [[encode(k, handle, depth - 1), encode(v, handle, depth - 1)] for k, v in value.items()]
        return ["d", pairs]
    if isinstance(value, range):
        return ["r", value.start, value.stop, value.step]
    for kind, tag in _CONTAINERS:
        if isinstance(value, kind):
            return [tag, [encode(item, handle, depth - 1) for item in value]]
    if isinstance(value, (Decimal, Fraction)):
        return ["D" if isinstance(value, Decimal) else "F", str(value)]
    if isinstance(value, type) and _TYPES.get(value.__name__) is value:
        return ["T", value.__name__]
    if handle is None:
        raise ValueRefused(f"a value of type {type(value).__name__} is not plain data")
    return ["o", handle(value), type(value).__name__[:100]]


_TYPES = {kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)}
_CONTAINERS = ((list, "l"), (tuple, "t"), (frozenset, "z"), ((set, KeysView), "s"))


def decode(tree: Any, opened: Callable[[int, str], Any] | None = None, depth: int = DEPTH) -> Any:
    """The value of `encode`'s JSON, built from plain types only; `opened` makes a stand-in for a handle.

    Raises:
        ValueRefused: anything that `encode` does not write.
    """
    if depth == 0:
        raise ValueRefused(f"a value is nested more than {DEPTH} levels deep")
    if tree is None or isinstance(tree, (bool, int, str)):
        return tree
    try:
        tag, content, *rest = tree
        if tag in _SCALARS:
            return _SCALARS[tag](content, *rest)
        if tag == "o":
            return (opened or _closed)(int(content), str(rest[0]))
        if tag == "d":
            return {decode(k, opened, depth - 1): decode(v, opened, depth - 1) for k, v in content}
        return _SEQUENCES[tag](decode(item, opened, depth - 1) for item in content)
    except ValueRefused:
        raise
    except (TypeError, ValueError, KeyError, IndexError, ArithmeticError, AttributeError) as error:
        raise ValueRefused(f"not a value: {str(error)[:200]}") from error


def _closed(number: int, kind: str) -> Any:
    raise ValueRefused(f"a value of type {kind} is not plain data")


_SCALARS: dict[str, Callable[..., Any]] = {
    "i": lambda text: int(text, 16),
    "f": float.fromhex,
    "c": lambda real, imag: complex(float.fromhex(real), float.fromhex(imag)),
    "b": bytes.fromhex,
    "B": bytearray.fromhex,
    "D": Decimal,
    "r": range,
    "T": _TYPES.__getitem__,
    "F": lambda text: Fraction(text) if "e" not in text.lower() else _closed(0, "Fraction"),
}
_SEQUENCES: dict[str, Callable[..., Any]] = {"l": list, "t": tuple, "z": frozenset, "s": set}


def same(expected: Any, found: Any, tolerance: float = 0.0) -> bool:
    """Whether two plain values are equal: numbers by value, truth only to truth, containers of the same type."""
    if isinstance(expected, bool) or isinstance(found, bool):
        return expected is found
    if isinstance(expected, (int, float)) and isinstance(found, (int, float)):
        if expected == found or (expected != expected and found != found):
            return True
        inexact = isinstance(expected, float) or isinstance(found, float)
        if not (tolerance and inexact):
            return False
        try:
            return math.isclose(expected, found, rel_tol=tolerance, abs_tol=tolerance)
        except OverflowError:  # an integer beyond all floats
            return False
    if type(expected) is not type(found):
        return False
    if isinstance(expected, (list, tuple)):
        return len(expected) == len(found) and all(same(a, b, tolerance) for a, b in zip(expected, found))
    if isinstance(expected, dict):
        return expected.keys() == found.keys() and all(same(v, found[k], tolerance) for k, v in expected.items())
    return expected == found


def frame(tree: Any) -> bytes:
    """JSON behind its length."""
    text = json.dumps(tree).encode("ascii")
    return HEADER.pack(len(text)) + text


def parse(text: bytes) -> Any:
    """JSON of one frame.

    Raises:
        ValueRefused: other bytes.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueRefused(f"not a frame: {str(error)[:100]}") from error


def split_frames(data: bytes) -> list[Any]:
    """All whole frames of `data`; a torn last one is left out.

    Raises:
        ValueRefused: bytes that are no frames.
    """
    frames, at = [], 0
    while at + HEADER.size <= len(data):
        (length,) = HEADER.unpack_from(data, at)
        at += HEADER.size
        if at + length > len(data):
            break
        frames.append(parse(data[at : at + length]))
        at += length
    return frames


def read_frame(fd: int, most: int) -> Any:
    """The next frame of a pipe.

    Raises:
        EOFError: the other side closed it.
        ValueRefused: a frame of more than `most` bytes, or no frame.
    """
    (length,) = HEADER.unpack(_read(fd, HEADER.size))
    if length > most:
        raise ValueRefused(f"a value of {length} bytes; at most {most} cross")
    return parse(_read(fd, length))


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _read(fd: int, n: int) -> bytes:
    parts = []
    while n:
        part = os.read(fd, min(n, 1 << 16))
        if not part:
            raise EOFError
        parts.append(part)
        n -= len(part)
    return b"".join(parts)
