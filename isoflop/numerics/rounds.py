"""The ends of a round of drafting, each in one kernel on a GPU (kernels/rounds.py), and in plain operators elsewhere.

Shapes: R rows of two tokens, N = 2 R, D model, K blocks of logits, P pages of a row, C half the channels of a head.
"""

import functools
import importlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isoflop.numerics.few_rows import Norm, best_of_blocks, launch_early
from isoflop.numerics.joined import rms_norm
from isoflop.numerics.launch import has_kernels, power_of_two


class Begun(NamedTuple):
    """What the step of a round reads."""

    tokens_N: Tensor
    positions_N: Tensor
    slots_N: Tensor
    before_R: Tensor
    x_ND: Tensor
    """Embeddings of the tokens."""
    angles: tuple[Tensor, Tensor]
    """Cosines and sines [N, C] of the positions."""


def begin_round(
    state_R4: Tensor, table_RP: Tensor, embedding: Tensor, angles: tuple[Tensor, Tensor], page: int
) -> Begun:
    """The two tokens of each row of a state: the last token, its draft, how many tokens are held, whose turn it is.

    `angles` are those of all positions. What is behind a row's pages goes to page 0.
    """
    (n_rows, n_columns), (cos, sin), (n_positions, half) = table_RP.shape, angles, angles[0].shape
    if has_kernels(embedding, wide=True):
        tokens_N, positions_N, slots_N = (state_R4.new_empty(2 * n_rows) for _ in range(3))
        before_R = state_R4.new_empty(n_rows)
        x_ND, d_model = embedding.new_empty(2 * n_rows, embedding.shape[1]), embedding.shape[1]
        cos_NC, sin_NC = cos.new_empty(2 * n_rows, half), sin.new_empty(2 * n_rows, half)
        launch_early(
            round_kernels().begin_round, (n_rows, 2),
            state_R4, table_RP, embedding, cos, sin, tokens_N, positions_N, slots_N, before_R, x_ND, cos_NC, sin_NC,
            n_columns, n_positions - 1, d_model, half,
            page=page, width=power_of_two(d_model), channels=power_of_two(half), num_warps=4,
        )  # fmt: skip
        return Begun(tokens_N, positions_N, slots_N, before_R, x_ND, (cos_NC, sin_NC))
    tokens_N, before_R = state_R4[:, :2].flatten(), state_R4[:, 2].clone()
    places_R2 = before_R[:, None] + torch.arange(2, device=state_R4.device)
    pages_R2 = table_RP.gather(1, (places_R2 // page).clamp(max=n_columns - 1))
    slots_N = (pages_R2 * page + places_R2 % page).flatten()
    positions_N = places_R2.clamp(max=n_positions - 1).flatten()
    angles = cos.index_select(0, positions_N), sin.index_select(0, positions_N)
    return Begun(tokens_N, positions_N, slots_N, before_R, embedding.index_select(0, tokens_N), angles)


def begin_draft(
    logits_NV: Tensor, hidden_ND: Tensor, embedding: Tensor, embedding_norm: Norm, hidden_norm: Norm
) -> tuple[Tensor, Tensor]:
    """The most likely token of each row of logits with its score, [N, 2] in float64, and [N, 2 D] for the module.

    That is the norm of those tokens' embeddings beside the norm of the hidden states.
    """
    best_NK, ids_NK = best_of_blocks(logits_NV)
    (n_tokens, d_model), n_blocks = hidden_ND.shape, best_NK.shape[1]
    if has_kernels(embedding, wide=True):
        chosen_N2 = hidden_ND.new_empty(n_tokens, 2, dtype=torch.float64)
        joined_NX = hidden_ND.new_empty(n_tokens, 2 * d_model)
        launch_early(
            round_kernels().begin_draft, (n_tokens,),
            best_NK, ids_NK, hidden_ND.contiguous(), embedding, embedding_norm.weight, hidden_norm.weight,
            chosen_N2, joined_NX, n_blocks, d_model, embedding_norm.eps, hidden_norm.eps,
            blocks=power_of_two(n_blocks), width=power_of_two(d_model), num_warps=4,
        )  # fmt: skip
        return chosen_N2, joined_NX
    best_N, block_N = best_NK.max(1)
    tokens_N = ids_NK.gather(1, block_N[:, None])[:, 0]
    embedded_ND = rms_norm(embedding.index_select(0, tokens_N).to(hidden_ND.dtype), *embedding_norm)
    joined_NX = torch.cat((embedded_ND, rms_norm(hidden_ND, *hidden_norm)), 1)
    return torch.stack((tokens_N.double(), best_N.double()), 1), joined_NX


def end_round(state_R4: Tensor, chosen_N2: Tensor, drafted_NV: Tensor, report_2R5: Tensor) -> None:
    """Write the next state over this one, and both tokens with their scores and the next draft to the report.

    Of each row's two tokens, and of the logits of what follows them, the second counts where the first is what was
    drafted. The halves of the report take turns, so that one is read while the next round runs. The report may be in
    the host's memory, pinned.
    """
    best_NK, ids_NK = best_of_blocks(drafted_NV)
    n_rows, n_blocks = len(state_R4), best_NK.shape[1]
    if has_kernels(state_R4, integers=True):
        launch_early(
            round_kernels().end_round, (n_rows,),
            state_R4, chosen_N2, best_NK, ids_NK, report_2R5, n_rows, n_blocks,
            blocks=power_of_two(n_blocks), num_warps=1,
        )  # fmt: skip
        return
    drafts_R2 = ids_NK.gather(1, best_NK.argmax(1, keepdim=True)).view(-1, 2)
    chosen_R22 = chosen_N2.view(-1, 2, 2)
    right_R = chosen_R22[:, 0, 0] == state_R4[:, 1]
    state_R4[:, 0] = torch.where(right_R, chosen_R22[:, 1, 0], chosen_R22[:, 0, 0])
    state_R4[:, 1] = torch.where(right_R, drafts_R2[:, 1], drafts_R2[:, 0])
    report_R5 = torch.cat((chosen_R22.flatten(1), state_R4[:, 1:2].double()), 1)
    report_2R5[state_R4[:, 3], torch.arange(n_rows, device=state_R4.device)] = report_R5
    state_R4[:, 2] += 1 + right_R
    state_R4[:, 3] = 1 - state_R4[:, 3]


@functools.cache
def round_kernels() -> Any:
    """The module of kernels, imported where one is launched."""
    return importlib.import_module("isoflop.numerics.kernels.rounds")
