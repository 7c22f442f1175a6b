"""The ends of a round of drafting (serving/rounds.py): everything between its products that is not a layer's.

The last logits' choice, the state that the next round starts from, rows of embeddings, norms and angles are a kernel
at the start of the round, one before the draft and one at the end, so that a round waits for as few starts as it can.

Shapes: R rows of two tokens, N = 2 R, D model, K blocks of logits, P pages of a row.
"""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from isoflop.numerics.kernels.products import _wait


@triton.jit
def begin_round(
    state, table, embedding, cos, sin, tokens, positions, slots, before, x, cos_out, sin_out,
    n_columns, last_position, d_model, half,
    page: tl.constexpr, width: tl.constexpr, channels: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """What a step of both tokens of a state [R, 4] reads: place, page, embedding and angles of each [N, ...]."""
    _wait(early)
    row, w = tl.program_id(0), tl.program_id(1)
    n = 2 * row + w
    token, held = tl.load(state + 4 * row + w), tl.load(state + 4 * row + 2)
    place = held + w
    position = tl.minimum(place, last_position)
    column = tl.minimum(place // page, n_columns - 1)
    tl.store(tokens + n, token)
    tl.store(positions + n, position)
    tl.store(slots + n, tl.load(table + row * n_columns + column) * page + place % page)
    if w == 0:
        tl.store(before + row, held)
    d, c = tl.arange(0, width), tl.arange(0, channels)
    y = tl.load(embedding + token * d_model + d, d < d_model, 0.0)
    tl.store(x + n * d_model + d, y.to(x.dtype.element_ty), d < d_model)
    tl.store(cos_out + n * half + c, tl.load(cos + position * half + c, c < half, 1.0), c < half)
    tl.store(sin_out + n * half + c, tl.load(sin + position * half + c, c < half, 0.0), c < half)


@triton.jit
def _normed(row, gain, out, d, d_model, eps):
    """out = row / rms(row) * gain, in float32 until it is stored."""
    y = tl.load(row + d, d < d_model, 0.0).to(tl.float32)
    y *= tl.rsqrt(tl.sum(y * y) / d_model + eps) * tl.load(gain + d, d < d_model, 0.0)
    tl.store(out + d, y.to(out.dtype.element_ty), d < d_model)


@triton.jit
def begin_draft(
    best, ids, hidden, embedding, embedding_gain, hidden_gain, chosen, joined, n_blocks, d_model,
    embedding_eps, hidden_eps, blocks: tl.constexpr, width: tl.constexpr, early: tl.constexpr,
):  # fmt: skip
    """A token's most likely next one and its score, float64 [N, 2], and what a prediction module starts from, [N, 2 D].

    `best` and `ids` [N, K] are the largest logit of each block and its place (`best_of_blocks`).
    """
    _wait(early)
    n, part, d = tl.program_id(0).to(tl.int64), tl.arange(0, blocks), tl.arange(0, width)
    scores = tl.load(best + n * n_blocks + part, part < n_blocks, float("-inf")).to(tl.float32)
    token = tl.load(ids + n * n_blocks + tl.argmax(scores, 0)).to(tl.int64)
    tl.store(chosen + 2 * n, token.to(tl.float64))
    tl.store(chosen + 2 * n + 1, tl.max(scores, 0).to(tl.float64))
    _normed(embedding + token * d_model, embedding_gain, joined + 2 * n * d_model, d, d_model, embedding_eps)
    _normed(hidden + n * d_model, hidden_gain, joined + (2 * n + 1) * d_model, d, d_model, hidden_eps)


@triton.jit
def end_round(
    state, chosen, best, ids, report, n_rows, n_blocks, blocks: tl.constexpr, early: tl.constexpr
):  # fmt: skip
    """A row's next state, written over this one, and its report [R, 5]: both tokens with their scores, the next draft.

    `chosen` [N, 2] as above, `best` and `ids` [N, K] of the drafts; the second of each counts where the first is what
    was drafted. The report goes to the half of `report` [2, R, 5] whose turn it is. One warp: it reads, then writes.
    """
    _wait(early)
    row, part, four = tl.program_id(0), tl.arange(0, blocks), tl.arange(0, 4)
    held, turn = tl.load(state + 4 * row + 2), tl.load(state + 4 * row + 3)
    right = tl.load(chosen + 4 * row).to(tl.int64) == tl.load(state + 4 * row + 1)
    n = 2 * row + tl.where(right, 1, 0)
    scores = tl.load(best + n * n_blocks + part, part < n_blocks, float("-inf")).to(tl.float32)
    draft = tl.load(ids + n * n_blocks + tl.argmax(scores, 0)).to(tl.int64)
    token = tl.load(chosen + 2 * n).to(tl.int64)
    target = report + (turn * n_rows + row) * 5
    tl.store(target + four, tl.load(chosen + 4 * row + four))
    tl.store(target + 4, draft.to(tl.float64))
    tl.store(state + 4 * row, token)
    tl.store(state + 4 * row + 1, draft)
    tl.store(state + 4 * row + 2, held + tl.where(right, 2, 1))
    tl.store(state + 4 * row + 3, 1 - turn)
