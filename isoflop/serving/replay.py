"""Decoding steps of repeating shapes: the smallest bucket that fits, padded, captured once, replayed afterwards.

A CUDA graph replays kernels with the launch constants of its capture, so everything that is one is part of a shape:
rows, tokens a row, pages a row. What changes from step to step (tokens, positions, slots, tables) is read from one
buffer of numbers, which is overwritten before each replay. Without a GPU the replay is a plain call on the same buffer:
buckets, padding and tables are the same.
"""

import bisect
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from isoflop.model.dispatch import runs_grouped
from isoflop.model.pages import PAGE, Span, lay_out
from isoflop.model.transformer import Transformer
from isoflop.numerics.linear import MatmulBackend

log = logging.getLogger(__name__)

Run = Callable[[Tensor, Any], tuple[Tensor, ...]]
"""Tokens and what a layout sees in the numbers behind them (a step) -> results, each [N, ...]."""


class Meaning(Protocol):
    """What the numbers of a shape are: so many tokens, and how the others are read (`model.pages.Layout`)."""

    @property
    def n_tokens(self) -> int: ...

    def view(self, numbers: Tensor) -> Any: ...


def buckets_up_to(largest: int) -> tuple[int, ...]:
    """1, 2, 4 ... and `largest` itself."""
    found = [1]
    while found[-1] < largest:
        found.append(min(2 * found[-1], largest))
    return tuple(found)


def can_replay(model: Transformer) -> bool:
    """Whether a step asks the device nothing: experts as grouped products, number formats without the host's noise.

    Without a GPU there is nothing that could not be called again.
    """
    device, experts = model.embedding.weight.device, model.config.experts
    if device.type != "cuda":
        return True
    formats = [
        (product, layer)
        for layer in model.modules()
        for product in layer.children()
        if isinstance(product, MatmulBackend)
    ]
    if not all(backend.capturable(w) for backend, layer in formats for w in layer.parameters(recurse=False)):
        return False
    widths = (model.config.d_model, experts.d_expert) if experts is not None else ()
    return experts is None or (not formats and runs_grouped(device, model.dtype, *widths))


class Shape(NamedTuple):
    """Every launch constant of a decoding step."""

    n_rows: int
    width: int
    n_columns: int


class Replay:
    """Runs rows of a step through buckets."""

    def __init__(
        self,
        run: Run,
        *,
        rows: Sequence[int],
        columns: Sequence[int],
        last_position: int,
        device: torch.device,
        one_by_one: bool = False,
        pool: Any = None,
    ):
        """`rows` and `columns` are the buckets, smallest first; the last ones hold whatever may come.

        Graphs take their memory from `pool`, one for all: only one of them runs at a time.
        With `one_by_one`, which cannot be captured, each row attends by itself.
        """
        assert not (one_by_one and device.type == "cuda")
        self._one_by_one = one_by_one
        self._run, self._rows, self._columns = run, tuple(rows), tuple(columns)
        self._last_position, self._device = last_position, device
        self._recorded: dict[Shape, Recorded] = {}
        self._pool = pool

    def shape_of(self, rows: Sequence[Span], width: int) -> Shape:
        """The smallest bucket that holds these rows."""
        n_columns = max(-(-(span.start + span.n) // PAGE) for span in rows)
        return Shape(at_least(self._rows, len(rows)), width, at_least(self._columns, n_columns))

    def __call__(self, tokens: Sequence[int] | Tensor, rows: Sequence[Span], width: int) -> tuple[Tensor, ...]:
        """Results of the rows' tokens; `tokens` has `width` for each row, on the device or not.

        On a GPU the results are the graphs' own: the next call overwrites them.
        """
        shape = self.shape_of(rows, width)
        numbers, layout = lay_out(
            rows,
            width=width,
            n_rows=shape.n_rows,
            n_columns=shape.n_columns,
            last_position=self._last_position,
            in_place=False,
            one_by_one=self._one_by_one,
        )
        if shape not in self._recorded:
            log.info("decoding of %d rows x %d tokens, %d pages a row: first time", *shape)
            self._recorded[shape] = Recorded(self._run, layout.n_tokens + len(numbers), self._device, self._pool)
        results = self._recorded[shape](tokens, numbers, layout)
        return tuple(result[: len(tokens)] for result in results)


class Recorded:
    """One shape: its buffer of numbers, and on a GPU its graph."""

    def __init__(self, run: Run, n_numbers: int, device: torch.device, pool: Any = None):
        self._numbers = torch.zeros(n_numbers, dtype=torch.int64, device=device)
        self._run, self._pool, self._graph = run, pool, None
        self._tail: list[int] = []  # the numbers behind the tokens as they were last written

    def __call__(self, tokens: Sequence[int] | Tensor, numbers: list[int], layout: Meaning) -> tuple[Tensor, ...]:
        """Results for these numbers; on a GPU their layout is that of the capture, as it is the same for a shape.

        Nothing is copied that is there already: tokens that are the buffer's own, numbers of the last call.
        """
        on_gpu, is_new, self._tail = self._numbers.is_cuda, numbers != self._tail, numbers
        if isinstance(tokens, Tensor):
            if tokens.data_ptr() != self._numbers.data_ptr():
                self._numbers[: len(tokens)] = tokens  # behind them are valid ones of earlier steps
            target = self._numbers[layout.n_tokens :]
        else:
            numbers, target = [*tokens, *[0] * (layout.n_tokens - len(tokens)), *numbers], self._numbers
        if is_new or target is self._numbers:
            target.copy_(torch.tensor(numbers, dtype=torch.int64, pin_memory=on_gpu), non_blocking=on_gpu)
        if not on_gpu:
            return self._compute(layout)
        if self._graph is None:
            self._capture(layout)
        self._graph.replay()  # type: ignore[union-attr]
        return self._results

    def _compute(self, layout: Meaning) -> tuple[Tensor, ...]:
        n = layout.n_tokens
        return self._run(self._numbers[:n], layout.view(self._numbers[n:]))  # a new step: it keeps its masks

    def _capture(self, layout: Meaning) -> None:
        """Warm up on another stream, as libraries choose kernels and allocate on first use, then record.

        What is computed may write to the numbers: they are put back.
        """
        current, numbers = torch.cuda.current_stream(self._numbers.device), self._numbers.clone()
        stream = torch.cuda.Stream(self._numbers.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._compute(layout)
                self._numbers.copy_(numbers)
        current.wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=self._pool):
            self._results = self._compute(layout)


def at_least(buckets: Sequence[int], n: int) -> int:
    """The smallest bucket that holds n."""
    return buckets[bisect.bisect_left(buckets, n)]
