"""Rounds of greedy decoding with one prediction module that the device does alone.

A round is a step of two tokens a row (the last one and its draft), the check of the draft, and the next draft, in one
graph. Its result is the state that the next round starts from, so the next one begins before the host has read this
one: the host learns of tokens and drafts a round later, and goes back to single steps wherever anything else is asked.

Entry i of the module's pages takes the hidden state at i and token i + 1: both are there when the round's tokens are
drawn, for one position or, where the draft was right, for two. What the second one writes where it was wrong lies
behind what is held, and is overwritten by the next round before anything reads it.

Shapes: R rows, N = 2 R tokens, P pages of a row.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isoflop.model.few_rows import run_head, run_mtp_step, run_step
from isoflop.model.pages import DUMP, PAGE, LayerPages, Rows, Step
from isoflop.model.transformer import Transformer
from isoflop.numerics.few_rows import begin_round, end_round, most_likely
from isoflop.serving.replay import Recorded, at_least, buckets_up_to
from isoflop.serving.scheduler import Row, Work

log = logging.getLogger(__name__)


class Table(NamedTuple):
    """Numbers of a round: the state [R, 3], then the pages [R, P]."""

    n_rows: int
    n_columns: int

    @property
    def n_tokens(self) -> int:
        return 3 * self.n_rows

    def view(self, numbers: Tensor) -> Tensor:
        return numbers.view(self.n_rows, self.n_columns)


class Report:
    """Tokens, scores and next drafts of a round, on their way from the device."""

    def __init__(self, works: Sequence[Work], report_R5: Tensor):
        self._works = [(work.row, work.start, work.row.drafts[0]) for work in works]
        self.drafts: list[int] = []
        self.next: list[tuple[Row, int, int]] = []
        """Rows, starts and drafts of the round that follows this one on the device, once this one is read."""
        self._host_R5 = torch.empty(report_R5.shape, dtype=report_R5.dtype, pin_memory=report_R5.is_cuda)
        self._host_R5.copy_(report_R5, non_blocking=report_R5.is_cuda)
        self._event = None
        if report_R5.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> tuple[list[int], list[float]]:
        """Tokens and scores of both places of every row, once the device has them."""
        if self._event is not None:
            self._event.synchronize()
        tokens: list[int] = []
        scores: list[float] = []
        for (row, start, checked), numbers in zip(self._works, self._host_R5.tolist(), strict=True):
            first, score, second, other_score, draft = numbers
            tokens += (int(first), int(second))
            scores += (score, other_score)
            self.drafts.append(int(draft))
            self.next.append((row, start + 1 + (first == checked), int(draft)))
        return tokens, scores


class Rounds:
    """Rounds through buckets, each captured once, and the one that was begun before it was asked for."""

    def __init__(
        self, model: Transformer, layers: Sequence[LayerPages], *, n_tokens: int, max_rows: int, pool: Any = None
    ):
        """`layers` are the pages of the model and, last, of its module; `n_tokens` ids may be drawn."""
        self._model, self._layers, self._n_tokens, self._pool = model, layers, n_tokens, pool
        self._last_position = model.config.seq_len - 1
        self._rows = buckets_up_to(max_rows)
        self._columns = buckets_up_to(-(-model.config.seq_len // PAGE))
        self._recorded: dict[Table, Recorded] = {}
        self._begun: tuple[Report, tuple[Tensor, ...]] | None = None

    def run(self, works: Sequence[Work]) -> tuple[Report, tuple[Tensor, ...]]:
        """What is read of a round of rows with one draft each, and its hidden states and logits on the device."""
        begun, self._begun = self._begun, None
        if begun is not None and begun[0].next == [(work.row, work.start, work.row.drafts[0]) for work in works]:
            results = begun[1]
        else:
            state = [number for w in works for number in (w.row.tokens[-1], w.row.drafts[0], w.start)]
            results = self._replay(state, works, ahead=0)
        state_R3, report_R5, *others = results
        report = Report(works, report_R5)
        if all(self._goes_on(work) for work in works):
            self._begun = report, self._replay(state_R3.flatten(), works, ahead=2)
        return report, tuple(others)

    def forget(self) -> None:
        """The round that was begun is not wanted: what it has written is overwritten before it is read."""
        self._begun = None

    def _goes_on(self, work: Work) -> bool:
        """Whether a row has tokens left to draw and draft, and pages for them, whatever this round gives."""
        row = work.row
        return len(row.tokens) + 4 <= row.limit and work.start + 4 <= PAGE * len(row.pages)

    def _replay(self, state: list[int] | Tensor, works: Sequence[Work], *, ahead: int) -> tuple[Tensor, ...]:
        """A round of rows that start `ahead` tokens later at most."""
        n_columns = max(-(-(work.start + ahead + 2) // PAGE) for work in works)
        table = Table(at_least(self._rows, len(works)), at_least(self._columns, n_columns))
        numbers: list[int] = []
        for work in works:
            held = work.row.pages[: table.n_columns]
            numbers += [*held, *[DUMP] * (table.n_columns - len(held))]
        numbers += [DUMP] * (table.n_columns * (table.n_rows - len(works)))
        if table not in self._recorded:
            log.info("rounds of %d rows, %d pages a row: first time", *table)
            n_numbers = table.n_tokens + len(numbers)
            self._recorded[table] = Recorded(self._round, n_numbers, self._model.embedding.weight.device, self._pool)
        state_R3, report_R5, hidden_ND, logits_NV = self._recorded[table](state, numbers, table)
        n = len(works)
        return state_R3[:n], report_R5[:n], hidden_ND[: 2 * n], logits_NV[: 2 * n]

    def _round(self, state_X: Tensor, table_RP: Tensor) -> tuple[Tensor, ...]:
        model, state_R3 = self._model, state_X.view(-1, 3)
        tokens_N, positions_N, slots_N, before_R = begin_round(state_R3, table_RP, self._last_position, PAGE)
        step = Step(positions_N, slots_N, Rows(2, table_RP, before_R))
        hidden_ND = run_step(model, tokens_N, step, self._layers)
        logits_NV = run_head(model, hidden_ND, self._n_tokens)
        chosen_N2 = most_likely(logits_NV)
        ahead_ND = run_mtp_step(model, 1, hidden_ND, chosen_N2[:, 0].long(), step, self._layers[-1])
        drafted_N2 = most_likely(run_head(model, ahead_ND, self._n_tokens))
        return *end_round(state_R3, chosen_N2, drafted_N2), hidden_ND, logits_NV
