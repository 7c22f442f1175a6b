"""A plan to logits: builds the step's numbers, runs the model over its pages, and keeps what prediction modules need.

Prediction modules draft with the main model's hidden states. For each running sequence the last W = 2 D of them are
kept (D modules): a module of depth k has entries of its own in the same pages, and entry i is final once token i + k is
known. After each step the modules run over those last positions: they write the entries that have become final, and
those at the very end as drafts, to be written again when the tokens are known.

Shapes: N tokens of a step, R rows, W tokens of a row, M places where a token is drawn, D model, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from isoflop.model.few_rows import run_head, run_mtp_step, run_step
from isoflop.model.pages import PAGE, LayerPages, Span, Step, make_step
from isoflop.model.transformer import Transformer
from isoflop.numerics.few_rows import most_likely
from isoflop.serving.replay import Replay, buckets_up_to
from isoflop.serving.rounds import Report, Rounds
from isoflop.serving.sampler import PlainDraw, draw_plain
from isoflop.serving.scheduler import Plan, Row, Work


class Ran(NamedTuple):
    """What a plan gave, in the order of its rows and then its chunks."""

    logits_MV: Tensor
    """At every place where a token is drawn: one for each row and each of its drafts, one for each finished prompt."""
    hidden: list[Tensor]
    """[n, D] of each work."""
    best: "Best | Report | None" = None
    """The token of every place, where only that was asked for."""
    drafts: Sequence[int] = ()
    """Of each row, where the device has drafted too; there once `best` is read."""


class Best:
    """Tokens and their scores, on their way from the device."""

    def __init__(self, best_M2: Tensor):
        self._event, self._host_M2 = None, best_M2
        if best_M2.is_cuda:
            self._host_M2 = torch.empty(best_M2.shape, dtype=best_M2.dtype, pin_memory=True)
            self._host_M2.copy_(best_M2, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> tuple[list[int], list[float]]:
        """Tokens and scores, once the device has them."""
        if self._event is not None:
            self._event.synchronize()
        tokens, scores = self._host_M2.T.tolist()
        return [int(token) for token in tokens], scores


class Ahead(NamedTuple):
    """A step that was begun before the tokens of the one before it were read."""

    rows: list[tuple[Row, int]]
    """And their starts."""
    results: tuple[Tensor, ...]


class Runner:
    """The model and all that it keeps of running sequences."""

    def __init__(
        self,
        model: Transformer,
        *,
        n_pages: int,
        max_rows: int,
        n_tokens: int,
        n_drafts: int = 0,
        mtp: bool = False,
        fixed: bool = False,
        replay: bool = False,
    ):
        """`n_tokens` ids may be drawn; sequences have up to `n_drafts` drafts, with `mtp` from so many modules."""
        config, n_mtp = model.config, n_drafts if mtp else 0
        self.model, self.max_rows, self.n_tokens, self.n_mtp, self.fixed = model, max_rows, n_tokens, n_mtp, fixed
        self._fixed_width = 1 + n_drafts
        self.device = model.embedding.weight.device
        self.layers = [
            LayerPages(n_pages, config, dtype=model.dtype, device=self.device) for _ in range(config.n_layers + n_mtp)
        ]
        self.window = 2 * n_mtp
        self._last_position = config.seq_len - 1
        self._tail_SWD = torch.zeros(max_rows, self.window, config.d_model, dtype=model.dtype, device=self.device)
        self._decode = self._mtp = self._rounds = self._ahead = None
        self._pool = torch.cuda.graph_pool_handle() if replay and self.device.type == "cuda" else None
        if fixed or replay:
            columns = -(-config.seq_len // PAGE)
            self._decode = self._replay(self._decode_step, columns)
            self._mtp = [self._replay(self._mtp_of(depth), columns) for depth in range(1, n_mtp + 1)]
        if n_mtp == 1 and replay and not fixed:
            rows = {"n_tokens": n_tokens, "max_rows": max_rows}
            self._rounds = Rounds(model, self.layers, **rows, pool=self._pool)

    def run(self, plan: Plan, draws: Sequence[PlainDraw] | None = None) -> Ran:
        """Compute what a plan says; with `draws` of all its places nothing but their tokens is asked for."""
        ahead, self._ahead = self._ahead, None
        if self._decode is None:
            return self._run_together(plan)
        if self._rounds is not None:
            if (
                draws
                and not plan.chunks
                and all(w.n == 2 for w in plan.rows)
                and all(d.temperature == 0 for d in draws)
            ):
                report, (hidden_ND, logits_NV) = self._rounds.run(plan.rows)
                return Ran(logits_NV, list(hidden_ND.split(2)), report, report.drafts)
            self._rounds.forget()
        if draws is not None and not plan.chunks:
            return self._run_and_draw(plan.rows, ahead, draws)
        parts = [self._run_padded(plan.rows)] if plan.rows else []
        chunks = [[work] for work in plan.chunks] if self.fixed else [plan.chunks] if plan.chunks else []
        parts += [self._run_together(Plan([], works)) for works in chunks]
        logits = [part.logits_MV for part in parts]
        return Ran(torch.cat(logits), [hidden for part in parts for hidden in part.hidden])

    def logits(self, hidden_MD: Tensor) -> Tensor:
        """Of the ids that may be drawn."""
        return self.model.head(hidden_MD)[:, : self.n_tokens]

    def remember(self, done: Sequence[tuple[Work, int]], hidden: Sequence[Tensor]) -> None:
        """Keep the last hidden states of each work's first `n` tokens: those that are right."""
        kept = [(w, n, h) for (w, n), h in zip(done, hidden, strict=True) if self.window and w.row.slot >= 0]
        if not kept:
            return
        before_ND = self._tail_SWD.flatten(0, 1)
        nothing = len(before_ND)  # a row of zeros, for what a sequence has not begun with
        found, index, end = [], [], nothing + 1
        for work, n, hidden_TD in kept:
            n_new = min(n, self.window)
            first = work.row.slot * self.window
            fresh = work.start == work.row.n_reused  # what is in the slot is another sequence's
            index += [nothing if fresh else first + at for at in range(n_new, self.window)]
            index += range(end, end + n_new)
            found.append(hidden_TD[n - n_new : n])
            end += n_new
        source_ND = torch.cat((before_ND, before_ND.new_zeros(1, before_ND.shape[1]), *found))
        tails_RWD = source_ND.index_select(0, self._on_device(index)).unflatten(0, (-1, self.window))
        self._tail_SWD.index_copy_(0, self._on_device([work.row.slot for work, _, _ in kept]), tails_RWD)

    def draft(
        self, rows: Sequence[Row], n_known: Sequence[int], choose: Callable[[Tensor, list[list[int]]], list[int]]
    ) -> list[list[int]]:
        """One draft of each prediction module for every row.

        `n_known` tokens of a row were known before this step; `choose` draws from logits, given all drafts so far.
        """
        window = self.window
        hidden_ND = self._tail_SWD[[row.slot for row in rows]].flatten(0, 1)
        drafts: list[list[int]] = [[] for _ in rows]
        for depth in range(1, self.n_mtp + 1):
            tokens, spans = [], []
            for row, known, drafted in zip(rows, n_known, drafts, strict=True):
                last = len(row.tokens) - 1
                text = [*row.tokens[-3 * window :], *drafted]
                ahead = text[max(0, len(text) - window) :]  # token i + depth for the window's positions i
                tokens += [*[0] * (window - len(ahead)), *ahead]
                spans.append(Span(row.pages, last - window, window, (max(known - depth, 0), last)))
            hidden_ND, logits_RV = self._run_mtp(depth, hidden_ND, tokens, spans)
            for drafted, token in zip(drafts, choose(logits_RV, drafts), strict=True):
                drafted.append(token)
        return drafts

    def wipe(self, pages: Sequence[int]) -> None:
        """Forget what a broken sequence has left behind."""
        for layer in self.layers:
            layer.wipe(pages)

    @property
    def n_bytes(self) -> int:
        """Of pages and tables."""
        return sum(layer.nbytes for layer in self.layers) + self._tail_SWD.nbytes

    def _run_together(self, plan: Plan) -> Ran:
        """Rows and chunks in one pass, every row as wide as the longest draft needs."""
        width = 1 + max((work.n_drafts for work in plan.rows), default=0)
        spans = [Span(work.row.pages, work.start, work.n) for work in plan.rows]
        chunks = [Span(work.row.pages, work.start, work.n) for work in plan.chunks]
        tokens = self._row_tokens(plan.rows, width)
        for work in plan.chunks:
            tokens += work.row.tokens[work.start : work.start + work.n]
        step = make_step(
            spans, chunks, width=width, last_position=self._last_position, device=self.device, in_place=not self.fixed
        )
        hidden_ND = run_step(self.model, self._on_device(tokens), step, self.layers)
        if self.n_mtp and plan.chunks:
            self._mtp_over_chunks(plan.chunks, hidden_ND[width * len(plan.rows) :])
        sizes = [*[width] * len(plan.rows), *[work.n for work in plan.chunks]]
        pieces = hidden_ND.split(sizes)
        places = [range(at * width, at * width + work.n) for at, work in enumerate(plan.rows)]
        end = width * len(plan.rows)
        for work in plan.chunks:
            end += work.n
            places.append(range(end - 1, end) if work.draws else range(0))
        index = [at for place in places for at in place]
        if len(index) < len(hidden_ND):
            hidden_ND = hidden_ND.index_select(0, self._on_device(index))
        works = [*plan.rows, *plan.chunks]
        return Ran(self.logits(hidden_ND), [piece[: work.n] for piece, work in zip(pieces, works, strict=True)])

    def _run_padded(self, works: Sequence[Work]) -> Ran:
        """Rows through buckets; in the fixed mode always the same one."""
        width = self._width(works)
        hidden_ND, logits_NV, _ = self._decode_rows(works, width)
        index = self._places(works, width)
        if len(index) < len(logits_NV):
            logits_NV = logits_NV.index_select(0, self._on_device(index))
        return Ran(logits_NV, self._hidden(works, hidden_ND, width))

    def _run_and_draw(self, works: Sequence[Work], ahead: Ahead | None, draws: Sequence[PlainDraw]) -> Ran:
        """The same with its tokens, which the device passes on to the next step while the host reads them."""
        width = self._width(works)
        if ahead is not None and ahead.rows == [(work.row, work.start) for work in works] and width == 1:
            hidden_ND, logits_NV, best_N2 = ahead.results
        else:
            hidden_ND, logits_NV, best_N2 = self._decode_rows(works, width)
        hidden, index = self._hidden(works, hidden_ND, width), self._places(works, width)
        is_greedy = all(draw.temperature == 0 for draw in draws)
        source_NX = best_N2 if is_greedy else logits_NV
        if len(index) < len(source_NX):
            source_NX = source_NX.index_select(0, self._on_device(index))
        best_M2 = source_NX if is_greedy else draw_plain(source_NX, draws)
        best = Best(best_M2)
        if self._can_go_ahead(works):
            spans = [Span(work.row.pages, work.start + 1, 1) for work in works]
            assert self._decode is not None
            results = self._decode(best_M2[:, 0], spans, 1)
            self._ahead = Ahead([(work.row, work.start + 1) for work in works], results)
        return Ran(logits_NV, hidden, best)

    def _can_go_ahead(self, works: Sequence[Work]) -> bool:
        """Whether every row goes on by one token, on pages that it has. One that stops before has lost nothing."""
        return self._fixed_width == 1 and all(
            len(work.row.tokens) + 1 < work.row.limit and work.start + 1 < PAGE * len(work.row.pages) for work in works
        )

    def _decode_rows(self, works: Sequence[Work], width: int) -> tuple[Tensor, ...]:
        assert self._decode is not None
        spans = [Span(work.row.pages, work.start, work.n) for work in works]
        return self._decode(self._row_tokens(works, width), spans, width)

    def _width(self, works: Sequence[Work]) -> int:
        return self._fixed_width if self.fixed else 1 + max(work.n_drafts for work in works)

    def _places(self, works: Sequence[Work], width: int) -> list[int]:
        return [at * width + w for at, work in enumerate(works) for w in range(work.n)]

    def _hidden(self, works: Sequence[Work], hidden_ND: Tensor, width: int) -> list[Tensor]:
        """Of each work, where prediction modules need it: what a graph returned is overwritten by its next replay."""
        pieces = (hidden_ND.clone() if self.window else hidden_ND).split(width)
        return [piece[: work.n] for piece, work in zip(pieces, works, strict=True)]

    def _row_tokens(self, works: Sequence[Work], width: int) -> list[int]:
        tokens: list[int] = []
        for work in works:
            tokens += [work.row.tokens[-1], *work.row.drafts, *[0] * (width - work.n)]
        return tokens

    def _decode_step(self, tokens_N: Tensor, step: Step) -> tuple[Tensor, ...]:
        hidden_ND = run_step(self.model, tokens_N, step, self.layers)
        logits_NV = run_head(self.model, hidden_ND, self.n_tokens)
        return hidden_ND, logits_NV, most_likely(logits_NV)

    def _run_mtp(self, depth: int, hidden_ND: Tensor, tokens: list[int], spans: list[Span]) -> tuple[Tensor, Tensor]:
        """Hidden states of the windows, and logits at their ends."""
        window = self.window
        if self._mtp is not None:
            self._mtp_input_ND[: len(hidden_ND)] = hidden_ND
            hidden_ND, logits_NV = self._mtp[depth - 1](tokens, spans, window)
            return hidden_ND.clone(), logits_NV[window - 1 :: window]
        step = make_step(spans, width=window, last_position=self._last_position, device=self.device)
        pages = self.layers[self.model.config.n_layers + depth - 1]
        hidden_ND = run_mtp_step(self.model, depth, hidden_ND, self._on_device(tokens), step, pages)
        return hidden_ND, self.logits(hidden_ND[window - 1 :: window])

    def _mtp_over_chunks(self, works: Sequence[Work], hidden_ND: Tensor) -> None:
        """Prediction modules over prompts: entries whose tokens are known are final."""
        for depth in range(1, self.n_mtp + 1):
            tokens, spans = [], []
            for work in works:
                ahead = work.row.tokens[work.start + depth : work.start + depth + work.n]
                tokens += [*ahead, *[0] * (work.n - len(ahead))]
                final = min(work.start + work.n, len(work.row.tokens) - depth)
                spans.append(Span(work.row.pages, work.start, work.n, (work.start, final)))
            step = make_step((), spans, device=self.device, in_place=not self.fixed)
            pages = self.layers[self.model.config.n_layers + depth - 1]
            hidden_ND = run_mtp_step(self.model, depth, hidden_ND, self._on_device(tokens), step, pages)

    def _replay(self, run: Callable[[Tensor, Step], tuple[Tensor, ...]], columns: int) -> Replay:
        return Replay(
            run,
            rows=(self.max_rows,) if self.fixed else buckets_up_to(self.max_rows),
            columns=(columns,) if self.fixed else buckets_up_to(columns),
            last_position=self._last_position,
            device=self.device,
            one_by_one=self.fixed and self.device.type == "cpu",
            pool=self._pool,
        )

    def _mtp_of(self, depth: int) -> Callable[[Tensor, Step], tuple[Tensor, ...]]:
        pages = self.layers[self.model.config.n_layers + depth - 1]
        if depth == 1:
            shape = (self.max_rows * self.window, self.model.config.d_model)
            self._mtp_input_ND = torch.zeros(shape, dtype=self.model.dtype, device=self.device)

        def run(tokens_N: Tensor, step: Step) -> tuple[Tensor, ...]:
            hidden_ND = run_mtp_step(self.model, depth, self._mtp_input_ND[: len(tokens_N)], tokens_N, step, pages)
            return hidden_ND, run_head(self.model, hidden_ND, self.n_tokens)

        return run

    def _on_device(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64).to(self.device, non_blocking=True)


def _is_round(rows: Sequence[Work], draws: Sequence[PlainDraw] | None) -> bool:
    """Whether every row checks one draft, and nothing but its most likely tokens is asked for."""
    return draws is not None and all(w.n == 2 for w in rows) and all(draw.temperature == 0 for draw in draws)
