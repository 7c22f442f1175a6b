"""Consecutive items in blocks of about one size: what is in memory, or worked on, at a time."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def blocks(items: Iterable[T], size_of: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Items of together at most this size, in order; a larger one is a block by itself."""
    block, size = list[T](), 0
    for item in items:
        if block and size + size_of(item) > most:
            yield block
            block, size = [], 0
        block.append(item)
        size += size_of(item)
    if block:
        yield block
