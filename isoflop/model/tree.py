"""Attention over a forest of token runs: each run sees its ancestors and itself, whatever was computed beside it.

A step computes several runs in one flat row of N tokens, as a step of `pages.py` does, but a run's keys and values are
found through a list of slots, one a token, because runs that branch off share their beginning. Runs of similar sizes
are padded to one block, so a layer needs few kernels. On a CPU, where a call costs little and copies cost much, each
small tree is attended to by itself instead, and a mask says who sees whom.

Shapes: N tokens of a step, R runs of a block, W tokens of the longest of them or of a tree, S keys of the longest, H
query heads, G key/value heads, C channels of a head.
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
BY_TREE = ("cpu",)
"""Devices that take trees one at a time."""
TREE_WASTE, TREE_PAIRS = 3.0, 2**11
"""The same of a tree that is attended to as a whole (assumption: a call costs about as much as 1,000 pairs)."""


class Run(NamedTuple):
    """New tokens and where the keys are that they see."""

    tokens: np.ndarray
    slots: np.ndarray
    """Of all tokens that the last one sees, its own last."""

    @property
    def start(self) -> int:
        """Position of the first token."""
        return len(self.slots) - len(self.tokens)


class Tree(NamedTuple):
    """Runs that follow each other in the step, the first one above all others, and what lies above it."""

    n_new: int
    n_seen: int
    """Its own tokens and those above."""
    mask_WS: Tensor | None
    """0 where a token looks, else -inf; None: at all before it."""


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

    trees: tuple[Tree, ...] = ()
    seen_S: Tensor | None = None
    """Slots that the trees see, one tree after the other."""
    blocks: tuple[Block, ...] = ()
    back_N: Tensor | None = None
    """Where the blocks' results, one after the other, hold each token."""
    is_kept: bool = True
    """Whether the next step keeps anything of this one."""


class TreePages(LayerPages):
    """Keys and values of a layer, a page of which is one token: tables and chunks hold slots.

    They are those of the last step: what it kept of the step before, then its own.
    """

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device):
        super().__init__(0, config, dtype=dtype, device=device)
        self.keys, self.values = self._keys_by_slot.unsqueeze(1), self._values_by_slot.unsqueeze(1)

    def has_kernels(self, x: Tensor) -> bool:
        """None of those for pages of many tokens."""
        return False

    def write(self, step: Step, k_NGC: Tensor, v_NGC: Tensor | None = None) -> None:
        """Forget what is not kept, and put the new tokens of a step behind the rest."""
        assert isinstance(step, TreeStep)
        if v_NGC is not None and not len(step.slots_N) and not step.is_kept:
            self.keys, self.values = k_NGC.unsqueeze(1), v_NGC.unsqueeze(1)  # as they lie, for this layer's attention
            return
        n_values = self.values.shape[-1]
        self.keys = torch.cat((self.keys.index_select(0, step.slots_N), k_NGC.unsqueeze(1)))
        if v_NGC is not None:
            self.values = torch.cat((self.values.index_select(0, step.slots_N), v_NGC.unsqueeze(1)))
        else:
            self.values = self.keys[..., :n_values]

    def attend(self, step: Step, q_NHC: Tensor, scale: float | None) -> Tensor:
        """Attention of all tokens of a step, [N, H, C]; their keys are written already."""
        assert isinstance(step, TreeStep)
        mixed_NHC = self._attend_trees(step, q_NHC, scale) if step.trees else self._attend_blocks(step, q_NHC, scale)
        if not step.is_kept:
            self.keys, self.values = (held.new_empty((0, *held.shape[1:])) for held in (self.keys, self.values))
        return mixed_NHC

    def _attend_trees(self, step: TreeStep, q_NHC: Tensor, scale: float | None) -> Tensor:
        assert step.seen_S is not None
        n_new, n_seen, masks = zip(*step.trees)
        k_SGC, v_SGC = (kept[:, 0].index_select(0, step.seen_S) for kept in (self.keys, self.values))
        q_1HNC, k_1GSC, v_1GSC = (x_NHC.transpose(0, 1)[None] for x_NHC in (q_NHC, k_SGC, v_SGC))
        heads = zip(q_1HNC.split(n_new, 2), k_1GSC.split(n_seen, 2), v_1GSC.split(n_seen, 2), masks)
        mixed = [attend(q_1HWC, k_1GSC, v_1GSC, scale, mask_WS) for q_1HWC, k_1GSC, v_1GSC, mask_WS in heads]
        return torch.cat([mixed_1HWC.transpose(1, 2) for mixed_1HWC in mixed], 1)[0]

    def _attend_blocks(self, step: TreeStep, q_NHC: Tensor, scale: float | None) -> Tensor:
        assert step.back_N is not None
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


def tree_step(
    kept: np.ndarray, runs: Sequence[Run], *, is_kept: bool = True, is_latent: bool, dtype: torch.dtype, device
) -> tuple[Tensor, TreeStep]:
    """Tokens [N] and the step of these runs, behind the kept slots of the step before, in one transfer to the device.

    Latent attention takes them one by one: its keys are made from what is kept, which padding would multiply.
    """
    numbers: list[np.ndarray] = [
        np.concatenate([run.tokens for run in runs]),
        np.concatenate([np.arange(run.start, len(run.slots)) for run in runs]),
        kept,
    ]
    shapes: list[tuple[bool, int]] = []
    trees = _trees(runs) if torch.device(device).type in BY_TREE else []
    if is_latent:
        numbers += [run.slots for run in runs]
    elif trees:
        numbers += [np.concatenate([tree[0].slots, *(run.slots[run.start :] for run in tree[1:])]) for tree in trees]
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
    step = TreeStep(positions_N, slots_N, is_kept=is_kept)
    if is_latent:
        ends = np.cumsum([len(run.tokens) for run in runs]).tolist()
        step.chunks = tuple(
            Chunk(end - len(run.tokens), end, len(run.slots), slots_S, None)
            for run, end, slots_S in zip(runs, ends, rest, strict=True)
        )
    elif trees:
        n_new = [sum(len(run.tokens) for run in tree) for tree in trees]
        masks = [_mask(tree, seen_S.numpy(), dtype) for tree, seen_S in zip(trees, rest)]
        step.trees = tuple(Tree(n, len(seen_S), mask) for n, seen_S, mask in zip(n_new, rest, masks, strict=True))
        step.seen_S = torch.cat(rest)
    else:
        blocks, step.back_N = [], rest[-1]
        for at, (is_root, n_runs) in enumerate(shapes):
            before_R, queries_Q, table_X = rest[3 * at : 3 * at + 3]
            rows = Rows(len(queries_Q) // n_runs, table_X.view(n_runs, -1), before_R)
            blocks.append(Block(rows, queries_Q, is_root))
        step.blocks = tuple(blocks)
    return tokens_N, step


def _trees(runs: Sequence[Run]) -> list[Sequence[Run]]:
    """Runs in depth-first order, cut into trees where one mask for all of them wastes little, else single ones."""
    ends, path = [len(runs)] * len(runs), []
    for at, run in enumerate(runs):
        while path and not _is_below(run, runs[path[-1]]):
            ends[path.pop()] = at
        path.append(at)
    found, at = [], 0
    while at < len(runs):
        tree = runs[at : ends[at]]
        n_new = sum(len(run.tokens) for run in tree)
        n_pairs = sum(len(run.tokens) * len(run.slots) for run in tree)
        if n_new * (tree[0].start + n_new) > TREE_WASTE * n_pairs + TREE_PAIRS:
            tree = runs[at : at + 1]
        found.append(tree)
        at += len(tree)
    return found


def _is_below(run: Run, above: Run) -> bool:
    last = len(above.slots) - 1
    return run.start > last and run.slots[last] == above.slots[last]


def _mask(tree: Sequence[Run], seen_S: np.ndarray, dtype: torch.dtype) -> Tensor | None:
    if len(tree) == 1 and not tree[0].start:
        return None
    first, column = tree[0].start, np.zeros(seen_S.max() + 1, dtype=np.int64)
    column[seen_S] = np.arange(len(seen_S))
    mask_WS = np.full((len(seen_S) - first, len(seen_S)), -np.inf, dtype=np.float32)
    for run in tree:
        end = column[run.slots[-1]] + 1
        own = slice(end - len(run.tokens), end)
        rows = mask_WS[own.start - first : own.stop - first]
        rows[:, column[run.slots[: run.start]]] = 0
        rows[:, own] = np.triu(rows[:, own], 1)  # above the diagonal
    return torch.from_numpy(mask_WS).to(dtype)


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
