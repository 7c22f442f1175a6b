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

from isoflop.model.few_rows import Start, run_draft, run_head, run_step
from isoflop.model.pages import DUMP, PAGE, LayerPages, Rows, Step
from isoflop.model.transformer import Transformer
from isoflop.numerics.rounds import begin_round, end_round
from isoflop.serving.replay import Recorded, at_least, buckets_up_to
from isoflop.serving.scheduler import Row, Work

log = logging.getLogger(__name__)


class Table(NamedTuple):
    """Numbers of a round: the state [R, 4], then the pages [R, P]."""

    n_rows: int
    n_columns: int

    @property
    def n_tokens(self) -> int:
        return 4 * self.n_rows

    def view(self, numbers: Tensor) -> Tensor:
        return numbers.view(self.n_rows, self.n_columns)


class Report:
    """Tokens, scores and next drafts of a round, which the device writes to the host's memory."""

    def __init__(self, works: Sequence[Work], host_R5: Tensor, device: torch.device):
        self._works = [(work.row, work.start, work.row.drafts[0]) for work in works]
        self.drafts: list[int] = []
        self.next: list[tuple[Row, int, int]] = []
        """Rows, starts and drafts of the round that follows this one on the device, once this one is read."""
        self._host_R5, self._event = host_R5, None
        if device.type == "cuda":
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
        self._rows = buckets_up_to(max_rows)
        self._columns = buckets_up_to(-(-model.config.seq_len // PAGE))
        self._recorded: dict[Table, tuple[Recorded, Tensor]] = {}
        """With the reports that they write, [2, R, 5]: the host reads one half while the device writes the other."""
        self._turn = 0
        """The half that the last round was given."""
        self._begun: tuple[Report, tuple[Tensor, ...]] | None = None

    def run(self, works: Sequence[Work]) -> tuple[Report, tuple[Tensor, ...]]:
        """What is read of a round of rows with one draft each, and its hidden states and logits on the device."""
        begun, self._begun = self._begun, None
        if begun is not None and begun[0].next == [(work.row, work.start, work.row.drafts[0]) for work in works]:
            results = begun[1]
        else:
            state = [number for w in works for number in (w.row.tokens[-1], w.row.drafts[0], w.start, 0)]
            results = self._replay(state, works, ahead=0)
        state_R4, report_R5, *others = results
        report = Report(works, report_R5, state_R4.device)
        if all(self._goes_on(work) for work in works):
            self._begun = report, self._replay(state_R4.flatten(), works, ahead=2)
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
            self._recorded[table] = self._new(table, len(numbers))
        recorded, report_2R5 = self._recorded[table]
        self._turn = 1 - self._turn if isinstance(state, Tensor) else 0
        state_R4, hidden_ND, logits_NV = recorded(state, numbers, table)
        n = len(works)
        return state_R4[:n], report_2R5[self._turn, :n], hidden_ND[: 2 * n], logits_NV[: 2 * n]

    def _new(self, table: Table, n_pages: int) -> tuple[Recorded, Tensor]:
        device = self._model.embedding.weight.device
        report_2R5 = torch.zeros(2, table.n_rows, 5, dtype=torch.float64, pin_memory=device.type == "cuda")

        def run(state_X: Tensor, table_RP: Tensor) -> tuple[Tensor, ...]:
            return self._round(state_X.view(-1, 4), table_RP, report_2R5)

        return Recorded(run, table.n_tokens + n_pages, device, self._pool), report_2R5

    def _round(self, state_R4: Tensor, table_RP: Tensor, report_2R5: Tensor) -> tuple[Tensor, ...]:
        """The state is overwritten: where nothing else changes, the same graph goes on from it."""
        model = self._model
        angles = model.get_buffer("cos"), model.get_buffer("sin")
        begun = begin_round(state_R4, table_RP, model.embedding.weight, angles, PAGE)
        step = Step(begun.positions_N, begun.slots_N, Rows(2, table_RP, begun.before_R))
        hidden_ND = run_step(model, begun.tokens_N, step, self._layers, Start(begun.x_ND, begun.angles))
        logits_NV = run_head(model, hidden_ND, self._n_tokens)
        chosen_N2, drafted_NV = run_draft(model, logits_NV, hidden_ND, step, self._layers[-1], begun.angles)
        end_round(state_R4, chosen_N2, drafted_NV, report_2R5)
        return state_R4, hidden_ND, logits_NV
