"""Attention over a forest of token runs: each run sees its ancestors and itself, whatever was computed beside it.

A step computes several runs in one flat row of N tokens, as a step of `pages.py` does, but a run's keys and values are
found through a list of slots, one a token, because runs that branch off share their beginning. Runs of similar sizes
are padded to one block, so a layer needs few kernels.

Shapes: N tokens of a step, R runs of a block, W tokens of the longest of them, S keys of the longest, H query heads,
G key/value heads, C channels of a head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from isoflop.model.attention import attend
from isoflop.model.config import ModelConfig
from isoflop.model.pages import Chunk, LayerPages, Rows, Step

MOST_KEYS = 2**18
"""Keys of a block, padding included: they are copied once a layer (assumption: 1 GiB at 2,048 channels of bf16)."""
WASTE, WASTE_PAIRS = 1.25, 2**12
"""A block may have so many times the pairs of query and key that its runs have, and so many more (assumption)."""


class Run(NamedTuple):
    """New tokens and where the keys are that they see."""

    tokens: np.ndarray
    slots: np.ndarray
    """Of all tokens that the last one sees, its own last."""

    @property
    def start(self) -> int:
        """Position of the first token."""
        return len(self.slots) - len(self.tokens)


class Block(NamedTuple):
    """Runs padded to one rectangle."""

    rows: Rows
    """Its table holds slots."""
    queries_Q: Tensor
    """Which tokens of the step its R * W queries are; padding repeats token 0."""
    is_root: bool
    """Whether no run of it has anything before it: then its keys are its own, and plain causal attention does."""


@dataclass
class TreeStep(Step):
    """A step over runs; its slots are those of the step before that are kept.

    `chunks` are the same runs one by one, which latent attention reads.
    """

    blocks: tuple[Block, ...] = ()
    back_N: Tensor | None = None
    """Where the blocks' results, one after the other, hold each token."""


class TreePages(LayerPages):
    """Keys and values of a layer, a page of which is one token: tables and chunks hold slots.

    They are those of the last step: what it kept of the step before, then its own.
    """

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device):
        super().__init__(0, config, dtype=dtype, device=device)
        self.keys, self.values = self._keys_by_slot.unsqueeze(1), self._values_by_slot.unsqueeze(1)

    def write(self, step: Step, k_NGC: Tensor, v_NGC: Tensor | None = None) -> None:
        """Forget what is not kept, and put the new tokens of a step behind the rest."""
        n_values = self.values.shape[-1]
        self.keys = torch.cat((self.keys.index_select(0, step.slots_N), k_NGC.unsqueeze(1)))
        if v_NGC is not None:
            self.values = torch.cat((self.values.index_select(0, step.slots_N), v_NGC.unsqueeze(1)))
        else:
            self.values = self.keys[..., :n_values]

    def attend(self, step: Step, q_NHC: Tensor, scale: float | None) -> Tensor:
        """Attention of all tokens of a step, [N, H, C]; their keys are written already."""
        assert isinstance(step, TreeStep) and step.back_N is not None
        parts = []
        for rows, queries_Q, is_root in step.blocks:
            q_QHC = q_NHC.index_select(0, queries_Q)
            if not is_root:
                parts.append(self.attend_rows(rows, q_QHC, scale))
                continue
            heads = (q_QHC.unflatten(0, (-1, rows.width)), *self.of_rows(rows))
            q_RHWC, k_RGSC, v_RGSC = (x.transpose(1, 2) for x in heads)
            parts.append(attend(q_RHWC, k_RGSC, v_RGSC, scale).transpose(1, 2).flatten(0, 1))
        return torch.cat(parts).index_select(0, step.back_N)


def tree_step(kept: np.ndarray, runs: Sequence[Run], *, is_latent: bool, device) -> tuple[Tensor, TreeStep]:
    """Tokens [N] and the step of these runs, behind the kept slots of the step before, in one transfer to the device.

    Latent attention takes them one by one: its keys are made from what is kept, which padding would multiply.
    """
    numbers: list[np.ndarray] = [
        np.concatenate([run.tokens for run in runs]),
        np.concatenate([np.arange(run.start, len(run.slots)) for run in runs]),
        kept,
    ]
    shapes: list[tuple[bool, int]] = []
    if is_latent:
        numbers += [run.slots for run in runs]
    else:
        firsts = np.cumsum([0, *(len(run.tokens) for run in runs)])
        back_N, n_padded = np.zeros(firsts[-1], dtype=np.int64), 0
        for members in _blocks(runs):
            block = [runs[at] for at in members]
            width, n_seen = max(len(run.tokens) for run in block), max(len(run.slots) for run in block)
            queries_RW = np.zeros((len(block), width), dtype=np.int64)
            table_RS = np.zeros((len(block), n_seen), dtype=np.int64)
            for row, (run, first) in enumerate(zip(block, firsts[members])):
                n = len(run.tokens)
                queries_RW[row, :n] = np.arange(first, first + n)
                table_RS[row, : len(run.slots)] = run.slots
                back_N[first : first + n] = np.arange(n) + n_padded + row * width
            numbers += [np.array([run.start for run in block]), queries_RW.ravel(), table_RS.ravel()]
            shapes.append((all(run.start == 0 for run in block), len(block)))
            n_padded += queries_RW.size
        numbers.append(back_N)
    flat = torch.from_numpy(np.concatenate(numbers).astype(np.int64)).to(device, non_blocking=True)
    tokens_N, positions_N, slots_N, *rest = flat.split([len(part) for part in numbers])
    if is_latent:
        ends = np.cumsum([len(run.tokens) for run in runs]).tolist()
        chunks = tuple(
            Chunk(end - len(run.tokens), end, len(run.slots), slots_S, None)
            for run, end, slots_S in zip(runs, ends, rest, strict=True)
        )
        return tokens_N, TreeStep(positions_N, slots_N, chunks=chunks)
    blocks = []
    for at, (is_root, n_runs) in enumerate(shapes):
        before_R, queries_Q, table_X = rest[3 * at : 3 * at + 3]
        rows = Rows(len(queries_Q) // n_runs, table_X.view(n_runs, -1), before_R)
        blocks.append(Block(rows, queries_Q, is_root))
    return tokens_N, TreeStep(positions_N, slots_N, blocks=tuple(blocks), back_N=rest[-1])


def _blocks(runs: Sequence[Run]) -> Iterator[list[int]]:
    """Runs of similar sizes, roots apart from others."""
    order = sorted(range(len(runs)), key=lambda at: (runs[at].start > 0, len(runs[at].slots), len(runs[at].tokens)))
    members: list[int] = []
    width = n_pairs = 0
    for at in order:
        run = runs[at]
        n_new, n_seen = len(run.tokens), len(run.slots)
        wider, pairs = max(width, n_new), n_pairs + n_new * n_seen
        n_padded = (len(members) + 1) * wider * n_seen
        mixed = members and (runs[members[0]].start > 0) != (run.start > 0)
        too_large = (len(members) + 1) * n_seen > MOST_KEYS
        if members and (mixed or too_large or n_padded > WASTE * pairs + WASTE_PAIRS):
            yield members
            members, wider, pairs = [], n_new, n_new * n_seen
        members.append(at)
        width, n_pairs = wider, pairs
    if members:
        yield members
