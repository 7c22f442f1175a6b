"""What decoding keeps, in pages of 64 tokens, and the step that says where a forward pass reads and writes them.

A layer keeps one tensor of pages for all sequences; a sequence is a list of page numbers and a length of its own. A
step computes some tokens of several sequences at once, laid out in one flat row of N: first R rows of W tokens each
(decoding and the verification of drafts), then chunks of prompts. Nothing is ever moved: to take tokens back, their
sequence is made shorter, and what comes next overwrites them. Page 0 belongs to nobody; padded rows write there.

The products with pages are plain PyTorch here. On a GPU the R rows take kernels (numerics/few_rows.py): all they need
(pages, `table_RP`, `before_R`) is on the device, and no shape depends on how long a sequence is.

Shapes: N tokens of a step, R rows, W tokens of a row, P pages of a row, S tokens attended to, H query heads, G
key/value heads, C channels of a head.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from isoflop.model.attention import attend
from isoflop.model.config import ModelConfig
from isoflop.numerics.few_rows import attend_pages, turn_and_write
from isoflop.numerics.heads import rotate_in_step
from isoflop.numerics.launch import has_kernels

PAGE = 64
"""Tokens of a page: 72 KiB of a 576-channel latent in bf16, as the published latent kernels have it."""
DUMP = 0
"""The page that padded rows write to."""
SHORT = 8
"""Up to this many new tokens a sequence is a row of a step, above it a chunk (assumption)."""


class Span(NamedTuple):
    """Tokens that a step computes of one sequence."""

    pages: Sequence[int]
    """Page numbers of the sequence, enough for `start + n` tokens."""
    start: int
    """Tokens held before; the position of the first new one."""
    n: int
    """New tokens."""
    written: tuple[int, int] | None = None
    """First position that is written and the one after the last; None: all new ones."""


@dataclass
class Rows:
    """The first R * W tokens of a step."""

    width: int
    table_RP: Tensor
    before_R: Tensor
    """Tokens held before the step: query w of a row sees before + w + 1 keys."""
    run: tuple[int, int] | None = None
    """First slot and tokens of the longest row, where all pages follow each other, row after row: read, not copied."""
    one_by_one: tuple["Rows", ...] = ()
    """The same rows, each with its own pages only, where attention must not depend on the rows beside it."""
    masks: dict[int, Tensor | None] = field(default_factory=dict)

    @property
    def n_tokens(self) -> int:
        return self.width * len(self.before_R)

    def mask(self, n_seen: int, heads_per_group: int) -> Tensor | None:
        """Which keys a query sees, [R, 1, heads_per_group * W, S] or broadcast to it; made once a step."""
        if heads_per_group not in self.masks:
            self.masks[heads_per_group] = self._mask(n_seen, heads_per_group)
        return self.masks[heads_per_group]

    def _mask(self, n_seen: int, heads_per_group: int) -> Tensor | None:
        if self.run is not None and self.n_tokens == 1:
            return None
        device = self.before_R.device
        # a padded query in front of its sequence sees one key too: a softmax over none is no number
        last_RW1 = (self.before_R[:, None] + torch.arange(self.width, device=device)).clamp(min=0)[..., None]
        seen_R1WS = (torch.arange(n_seen, device=device) <= last_RW1)[:, None]
        return seen_R1WS if self.width == 1 else seen_R1WS.repeat(1, 1, heads_per_group, 1)


class Chunk(NamedTuple):
    """A run of new tokens of one sequence: tokens `first` to `last` (exclusive) of the step."""

    first: int
    last: int
    n_seen: int
    """Tokens held once they are written."""
    pages_P: Tensor
    run: int | None
    """First slot, where the pages follow each other."""


@dataclass
class Step:
    """Tokens of one forward pass: their positions, where they are written, and what they attend to."""

    positions_N: Tensor
    slots_N: Tensor
    """Place in the pages, counted in tokens."""
    rows: Rows | None = None
    chunks: tuple[Chunk, ...] = ()


class LayerPages:
    """Keys and values of one layer. With latent attention the values are the first channels of the keys themselves."""

    def __init__(self, n_pages: int, config: ModelConfig, *, dtype: torch.dtype, device):
        latent = config.latent
        n_heads, d_key = (1, latent.d_kv_latent + latent.d_rope) if latent else (config.n_kv_heads, config.d_head)
        self.keys = torch.zeros(n_pages, PAGE, n_heads, d_key, dtype=dtype, device=device)
        self.values = self.keys[..., : latent.d_kv_latent] if latent else torch.zeros_like(self.keys)
        self._one = latent is not None
        self._keys_by_slot, self._values_by_slot = self.keys.flatten(0, 1), self.values.flatten(0, 1)  # views

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes if self._one else 2 * self.keys.nbytes

    def has_kernels(self, x: Tensor) -> bool:
        return has_kernels(x, wide=True)

    def write(self, step: Step, k_NGC: Tensor, v_NGC: Tensor | None = None) -> None:
        """Put the new tokens of a step in their places."""
        self._keys_by_slot.index_copy_(0, step.slots_N, k_NGC)
        if v_NGC is not None:
            self._values_by_slot.index_copy_(0, step.slots_N, v_NGC)

    def write_heads(self, step: Step, heads_NHC: Tensor, cos_NC: Tensor, sin_NC: Tensor) -> Tensor:
        """Turned queries [N, H, C] of a joint product [N, H + 2 G, C]; turned keys and values go to their places."""
        if self.has_kernels(heads_NHC):
            return turn_and_write(heads_NHC, cos_NC, sin_NC, step.slots_N, self.keys, self.values)
        n_groups = self.keys.shape[2]
        qk_NHC, v_NGC = heads_NHC.split((heads_NHC.shape[1] - n_groups, n_groups), dim=1)
        turned_NHC = rotate_in_step(qk_NHC, cos_NC, sin_NC)
        q_NHC, k_NGC = turned_NHC.split((turned_NHC.shape[1] - n_groups, n_groups), dim=1)
        self.write(step, k_NGC, v_NGC)
        return q_NHC

    def wipe(self, pages: Sequence[int]) -> None:
        """Forget values that are no numbers: what is masked is still multiplied, by zero."""
        self.keys[list(pages)] = 0
        self.values[list(pages)] = 0

    def of_rows(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Keys and values of all rows, [R, S, G, C] each, S at least the longest row's."""
        if rows.run is not None:
            return _in_place(self._keys_by_slot, rows, rows.run), _in_place(self._values_by_slot, rows, rows.run)
        return self._gather(rows.table_RP.flatten(), len(rows.table_RP))

    def of_chunk(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Keys and values of a chunk and of everything before it, [1, S, G, C] each."""
        if chunk.run is not None:
            span = slice(chunk.run, chunk.run + chunk.n_seen)
            return self._keys_by_slot[None, span], self._values_by_slot[None, span]
        k_1SGC, v_1SGC = self._gather(chunk.pages_P, 1)
        return k_1SGC[:, : chunk.n_seen], v_1SGC[:, : chunk.n_seen]

    def _gather(self, pages: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
        k_RSGC = self.keys.index_select(0, pages).unflatten(0, (n_rows, -1)).flatten(1, 2)
        if self._one:
            return k_RSGC, k_RSGC[..., : self.values.shape[-1]]
        return k_RSGC, self.values.index_select(0, pages).unflatten(0, (n_rows, -1)).flatten(1, 2)

    def attend_rows(self, rows: Rows, q_NHC: Tensor, scale: float | None) -> Tensor:
        """Attention of the step's rows, [R * W, H, channels of a value].

        The heads that share a key stand as further queries of it, so that a key is read once and never repeated.
        """
        if rows.one_by_one:
            pairs = zip(rows.one_by_one, q_NHC.split(rows.width), strict=True)
            return torch.cat([self.attend_rows(row, q_WHC, scale) for row, q_WHC in pairs])
        if self.has_kernels(q_NHC):
            return attend_pages(q_NHC, self.keys, self.values, rows.table_RP, rows.before_R, scale)
        k_RSGC, v_RSGC = self.of_rows(rows)
        n_rows, n_seen, n_groups, _ = k_RSGC.shape
        n_heads, width = q_NHC.shape[1], rows.width
        mask = rows.mask(n_seen, n_heads // n_groups)
        k_RGSC, v_RGSC = k_RSGC.transpose(1, 2), v_RSGC.transpose(1, 2)
        if width == 1:
            q_RGQC = q_NHC.view(n_rows, n_groups, n_heads // n_groups, -1)
            mixed_RGQC = F.scaled_dot_product_attention(q_RGQC, k_RGSC, v_RGSC, attn_mask=mask, scale=scale)
            return mixed_RGQC.reshape(n_rows, n_heads, -1)
        q_RGQC = q_NHC.view(n_rows, width, n_groups, n_heads // n_groups, -1).permute(0, 2, 3, 1, 4).flatten(2, 3)
        mixed_RGQC = F.scaled_dot_product_attention(q_RGQC, k_RGSC, v_RGSC, attn_mask=mask, scale=scale)
        mixed_RGHWC = mixed_RGQC.unflatten(2, (-1, width))
        return mixed_RGHWC.permute(0, 3, 1, 2, 4).reshape(n_rows * width, n_heads, -1)

    def attend(self, step: Step, q_NHC: Tensor, scale: float | None) -> Tensor:
        """Attention of all tokens of a step to what is held, [N, H, C]; they are written already."""
        parts = [self.attend_rows(step.rows, q_NHC[: step.rows.n_tokens], scale)] if step.rows else []
        for chunk in step.chunks:
            k_BSGC, v_BSGC = self.of_chunk(chunk)
            q_BTHC = q_NHC[None, chunk.first : chunk.last]
            q_BHTC, k_BGSC, v_BGSC = (x.transpose(1, 2) for x in (q_BTHC, k_BSGC, v_BSGC))
            parts.append(attend(q_BHTC, k_BGSC, v_BGSC, scale)[0].transpose(0, 1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class Layout(NamedTuple):
    """What a step's numbers on the device mean: counts of them, and what only the host needs to know."""

    n_tokens: int
    n_rows: int
    n_columns: int
    width: int
    run: tuple[int, int] | None
    chunks: tuple[tuple[int, int, int, int, int | None], ...]
    """First and last token, tokens seen, pages, first slot."""
    own_pages: tuple[int, ...] = ()
    """Pages that each row reads, where rows are computed one by one."""

    def view(self, numbers: Tensor) -> Step:
        """The step whose numbers these are."""
        sizes = (self.n_tokens, self.n_tokens, self.n_rows, len(numbers) - 2 * self.n_tokens - self.n_rows)
        positions_N, slots_N, before_R, table_X = numbers.split(sizes)
        at, chunks = self.n_rows * self.n_columns, []
        table_RP = table_X[:at].view(self.n_rows, self.n_columns)
        alone = tuple(
            Rows(self.width, table_RP[row : row + 1, :n], before_R[row : row + 1])
            for row, n in enumerate(self.own_pages)
        )
        rows = Rows(self.width, table_RP, before_R, self.run, alone)
        for first, last, n_seen, n_pages, slot in self.chunks:
            chunks.append(Chunk(first, last, n_seen, table_X[at : at + n_pages], slot))
            at += n_pages
        return Step(positions_N, slots_N, rows if self.n_rows else None, tuple(chunks))


def lay_out(
    rows: Sequence[Span],
    chunks: Sequence[Span] = (),
    *,
    width: int = 1,
    n_rows: int = 0,
    n_columns: int = 0,
    last_position: int = 2**31,
    in_place: bool = True,
    one_by_one: bool = False,
) -> tuple[list[int], Layout]:
    """Numbers and layout of a step of `rows`, each filled up to `width` tokens, and of `chunks`.

    With `n_rows` and `n_columns` there are so many rows and pages of a row: what is too much goes to page 0, so that
    shapes repeat. Without `in_place` pages are always gathered, which is the same work for every row; with `one_by_one`
    each row attends by itself to its own pages.
    """
    n_rows = max(n_rows, len(rows))
    n_columns = max([n_columns, *(-(-(span.start + span.n) // PAGE) for span in rows)])
    positions, slots, table, before = [], [], [], []
    for span in (*rows, *[Span((), 0, 0)] * (n_rows - len(rows))):
        positions += [min(max(at, 0), last_position) for at in range(span.start, span.start + width)]
        slots += _slots(span, width)
        held = span.pages[: min(len(span.pages), n_columns)]
        table += [*held, *[DUMP] * (n_columns - len(held))]
        before.append(span.start)
    place, found = n_rows * width, []
    for span in chunks:
        positions += range(span.start, span.start + span.n)
        slots += _slots(span, span.n)
        held = span.pages[: -(-(span.start + span.n) // PAGE)]
        table += held
        slot = _first_slot(held) if in_place else None
        found.append((place, place + span.n, span.start + span.n, len(held), slot))
        place += span.n
    run = None
    if in_place and len(rows) == n_rows:
        first, n_seen = _first_slot(table[: n_rows * n_columns]), max([0, *before]) + width
        if first and n_seen <= n_columns * PAGE:  # the first page is nobody's
            run = (first, n_seen)
    own = tuple(max(1, min(n_columns, -(-(start + width) // PAGE))) for start in before) if one_by_one else ()
    layout = Layout(len(positions), n_rows, n_columns, width, run, tuple(found), own)
    return [*positions, *slots, *before, *table], layout


def make_step(rows: Sequence[Span], chunks: Sequence[Span] = (), *, device, **options: Any) -> Step:
    """`lay_out`, and everything for the device in one transfer."""
    numbers, layout = lay_out(rows, chunks, **options)
    return layout.view(torch.tensor(numbers, dtype=torch.int64).to(device, non_blocking=True))


def _slots(span: Span, n: int) -> list[int]:
    """Where the tokens of a span are written; page 0 for those that are not."""
    first, last = span.written or (span.start, span.start + span.n)
    pages, places = span.pages, range(span.start, span.start + n)
    return [pages[at // PAGE] * PAGE + at % PAGE if first <= at < last else DUMP for at in places]


def _first_slot(pages: Sequence[int]) -> int | None:
    follow = all(b == a + 1 for a, b in itertools.pairwise(pages))
    return pages[0] * PAGE if pages and follow else None


def _in_place(by_slot: Tensor, rows: Rows, run: tuple[int, int]) -> Tensor:
    first, n_seen = run
    n_rows, n_pages = rows.table_RP.shape
    token, head, channel = by_slot.stride()
    shape, strides = (n_rows, n_seen, *by_slot.shape[1:]), (n_pages * PAGE * token, token, head, channel)
    return by_slot.as_strided(shape, strides, first * token)  # one call; a layer makes this view at every step


class Cache:
    """Pages of a batch of sequences that are decoded side by side."""

    def __init__(self, config: ModelConfig, batch: int, capacity: int, *, dtype: torch.dtype, device):
        per_row = -(-capacity // PAGE)
        self.capacity, self.device, self.length = capacity, device, 0
        self.pages = [list(range(1 + row * per_row, 1 + (row + 1) * per_row)) for row in range(batch)]
        n_pages = 1 + batch * per_row
        self.layers = [LayerPages(n_pages, config, dtype=dtype, device=device) for _ in range(config.n_layers)]

    def extend(self, n_tokens: int) -> Step:
        """The step that appends `n_tokens` to every sequence."""
        start, self.length = self.length, self.length + n_tokens
        assert self.length <= self.capacity, f"cache holds {self.capacity} tokens, {self.length} needed"
        spans = [Span(pages, start, n_tokens) for pages in self.pages]
        if n_tokens <= SHORT:
            return make_step(spans, width=n_tokens, device=self.device)
        return make_step((), spans, device=self.device)
