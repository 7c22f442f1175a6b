"""Samples of different lengths in rows of one length: which go together, and the tensors of a row.

Best-fit decreasing: the longest sample first, each into the fullest row that still has room. Samples of a row have
numbers by which attention keeps them apart (`Transformer.forward`, documents_BT), so a row is worth exactly its samples
one by one; what they are packed with changes nothing but speed. Source: arXiv 2412.19437, section 5.1 (samples packed,
mutually invisible); the order is that of best-fit decreasing bin packing.

Shapes: B rows, T tokens of a row.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from isoflop.errors import DataError
from isoflop.tokens.chat import Row

IGNORED = -1
"""A target that does not count."""


class Packed(NamedTuple):
    """Rows of samples, ready for the model; all [B, T] int64."""

    tokens_BT: Tensor
    targets_BT: Tensor
    """The token behind each, or IGNORED."""
    samples_BT: Tensor
    """Index of the sample in the step that each token belongs to; IGNORED is padding."""


def n_positions(row: Row) -> int:
    """Room that a sample takes: its last token is predicted, not read."""
    return len(row.ids) - 1


def order_of(n_samples: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: a permutation that is a pure function of its arguments."""
    seeds = np.random.SeedSequence([seed, 0x73616D70, epoch])
    return np.random.Generator(np.random.Philox(seeds)).permutation(n_samples)


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which samples share a row, by index; equal lengths go in the order given.

    Raises:
        DataError: a sample that no row can hold.
    """
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # room left -> rows
    rooms: list[int] = []  # the different ones, sorted
    for sample in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[sample]
        if length > capacity:
            raise DataError(f"a sample of {length} tokens is longer than a row of {capacity}; drop it or raise seq_len")
        at = bisect_left(rooms, length)
        if at == len(rooms):
            row, room = len(rows), capacity
            rows.append([])
        else:
            room = rooms[at]
            row = with_room[room].pop(0)
            if not with_room[room]:
                del with_room[room], rooms[at]
        rows[row].append(sample)
        left = room - length
        if left not in with_room:
            with_room[left] = []
            insort(rooms, left)
        with_room[left].append(row)
    return rows


def pack(samples: Sequence[Row], *, seq_len: int, packed: bool = True) -> Packed:
    """All samples of a step in rows of `seq_len` tokens; without `packed` one to a row, padded to the longest."""
    lengths = [n_positions(sample) for sample in samples]
    if packed:
        rows, width = best_fit(lengths, seq_len), seq_len
    else:
        rows, width = [[index] for index in range(len(samples))], max(lengths)
    tokens = np.zeros((len(rows), width), dtype=np.int64)
    targets = np.full((len(rows), width), IGNORED, dtype=np.int64)
    numbers = np.full((len(rows), width), IGNORED, dtype=np.int64)
    for index, row in enumerate(rows):
        at = 0
        for sample in row:
            ids, is_target = samples[sample]
            here = slice(at, at + lengths[sample])
            tokens[index, here] = ids[:-1]
            targets[index, here] = np.where(is_target[1:], ids[1:], IGNORED)
            numbers[index, here] = sample
            at = here.stop
    return Packed(torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(numbers))


def with_last_read(rows: Sequence[Row]) -> list[Row]:
    """Samples whose last token is read too, and is the one place with a target (an id that nothing looks at)."""
    found = []
    for row in rows:
        is_target = np.zeros(len(row.ids) + 1, dtype=bool)
        is_target[-1] = True
        found.append(Row(np.append(row.ids, np.int32(0)), is_target))
    return found
