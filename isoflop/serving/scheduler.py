"""What the next step computes: one token (and its drafts) for every running sequence, then prompts, within one budget.

Sequences wait in the order of arrival and are admitted in that order, so nobody is overtaken. Pages are taken as a
sequence grows; when they run out, the youngest running one gives all of its pages back and returns to the queue, to be
computed again. The oldest is never sent back, so every admitted sequence ends. No torch here: tokens and pages are
numbers, and a step is a list of who computes how much.
"""

import bisect
from dataclasses import dataclass, field
from typing import NamedTuple

from isoflop.model.pages import PAGE
from isoflop.serving.blocks import Entry, PagePool


@dataclass(eq=False)
class Row:
    """One sequence between its arrival and its end."""

    number: int
    """Order of arrival, and name."""
    tokens: list[int]
    """Prompt and continuation."""
    n_prompt: int
    limit: int
    """Tokens at which it ends."""
    salt: bytes = b""
    reuse: bool = True
    """Whether it may begin with pages of others."""
    pages: list[int] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    """Of its first pages, those that others can find."""
    held: int = 0
    """Tokens whose keys are in the pages: whatever lies behind them is overwritten."""
    n_reused: int = 0
    """Tokens that were not computed because others had computed them."""
    target: int = 0
    """Tokens that were known at admission: up to here it computes chunks, afterwards one token a step."""
    drafts: list[int] = field(default_factory=list)
    """Guesses of the tokens after the last one."""
    slot: int = -1
    """Place in the tables of the running sequences."""
    n_preempted: int = 0

    @property
    def is_decoding(self) -> bool:
        return self.held >= self.target


class Work(NamedTuple):
    """What a step does for one sequence: tokens held .. held + n (drafts last)."""

    row: Row
    start: int
    n: int
    n_drafts: int

    @property
    def draws(self) -> bool:
        """Whether its last token is the last one known, so that the next one can be drawn."""
        return self.start + self.n - self.n_drafts == len(self.row.tokens)


class Plan(NamedTuple):
    rows: list[Work]
    """One token and its drafts each."""
    chunks: list[Work]


class Scheduler:
    """Waiting and running sequences, and the pages between them."""

    def __init__(
        self,
        pool: PagePool,
        *,
        max_rows: int,
        budget: int,
        chunk: int = 0,
        fixed: bool = False,
    ):
        """`budget` tokens a step at most, `chunk` tokens of a prompt (0: as many as the budget has).

        With `fixed`, what a sequence computes depends on nothing but itself: chunks end at multiples of `chunk`, one
        prompt is computed at a time, and all pages are taken at admission, so that nothing is ever computed again.
        """
        assert budget >= max_rows >= 1 and (chunk or not fixed), (budget, max_rows, chunk)
        self.pool, self.max_rows, self.budget, self.chunk, self.fixed = pool, max_rows, budget, chunk, fixed
        self.waiting: list[Row] = []
        self.running: list[Row] = []
        self._slots = list(range(max_rows - 1, -1, -1))
        self.n_preempted = 0

    def add(self, row: Row) -> None:
        bisect.insort(self.waiting, row, key=lambda other: other.number)

    def fits(self, limit: int) -> bool:
        """Whether a sequence of `limit` tokens can ever be computed; the last token is drawn and not kept."""
        return -(-max(limit - 1, 1) // PAGE) <= self.pool.n_pages - 1

    def plan(self) -> Plan:
        """The next step. Changes pages and queues: what is planned must be computed."""
        left, rows, chunks, sent_back = self.budget, [], [], False
        decoding = [row for row in self.running if row.is_decoding]
        for index, row in enumerate(decoding):
            if row.slot < 0:  # sent back for the sake of an older one
                continue
            behind = len(decoding) - index - 1
            del row.drafts[max(0, min(row.limit - len(row.tokens) - 1, left - behind - 1)) :]
            while row.slot >= 0 and not self._grow(row):
                self._send_back(self.running[-1])
                sent_back = True
            if row.slot >= 0:
                rows.append(Work(row, row.held, 1 + len(row.drafts), len(row.drafts)))
                left -= rows[-1].n
        for row in self.running:
            if not row.is_decoding and left > 0:
                left -= self._plan_chunk(row, left, chunks)
        while self.waiting and not sent_back and left > 0:
            row = self.waiting[0]
            if not self._admit(row):
                break
            left -= self._plan_chunk(row, left, chunks)
        return Plan(rows, chunks)

    def advance(self, work: Work, new_tokens: list[int]) -> None:
        """Take note of a step's result: drafts that `new_tokens` confirm are held now, the others are forgotten."""
        row = work.row
        row.drafts.clear()
        row.held = work.start + work.n - work.n_drafts
        if work.n_drafts:
            row.held += max(0, len(new_tokens) - 1)
        row.tokens += new_tokens

    def share(self, row: Row) -> None:
        """Let others find the pages that are full and final by now."""
        if not self.pool.reuse:
            return
        known = row.n_prompt if self.fixed else len(row.tokens)  # what decoding wrote has other bits than a prompt has
        while len(row.entries) < len(row.pages):
            index = len(row.entries)
            end = (index + 1) * PAGE
            if end > row.held or end + self.pool.lookahead > known:
                return
            parent = row.entries[-1] if row.entries else None
            entry = self.pool.share(row.pages[index], parent, self.pool.ids_of(row.tokens, index), row.salt)
            if entry is None:
                return
            row.entries.append(entry)

    def remove(self, row: Row) -> None:
        """The end of a sequence, wherever it is: its pages are free at once."""
        if row.slot >= 0:
            self._leave(row)
        elif row in self.waiting:
            self.waiting.remove(row)

    def _plan_chunk(self, row: Row, left: int, chunks: list[Work]) -> int:
        n = row.target - row.held
        if self.fixed:
            n = min(n, self.chunk - row.held % self.chunk)
            if chunks or n > left:
                return 0
        else:
            n = min(n, left, self.chunk or left)
        chunks.append(Work(row, row.held, n, 0))
        return n

    def _admit(self, row: Row) -> bool:
        if len(self.running) == self.max_rows or (self.fixed and any(not r.is_decoding for r in self.running)):
            return False
        found = self.pool.match(row.tokens, row.salt) if row.reuse else []
        n_tokens = max(row.limit - 1, len(row.tokens)) if self.fixed else len(row.tokens)
        needed = -(-n_tokens // PAGE) - len(found)
        spare = 0 if self.fixed else len(self.running)  # a page for each that is running, to grow by
        if needed + spare > self.pool.n_free - self.pool.n_kept_of(found):
            return False
        row.pages = self.pool.hold(found)
        taken = self.pool.take(needed)
        assert taken is not None
        row.pages += taken
        row.entries, row.held = found, len(found) * PAGE
        row.n_reused, row.target = row.held, len(row.tokens)
        row.slot = self._slots.pop()
        self.waiting.remove(row)
        bisect.insort(self.running, row, key=lambda other: other.number)
        return True

    def _grow(self, row: Row) -> bool:
        """Pages for the tokens that are known, and for the drafts if there are pages to spare."""
        needed = -(-(len(row.tokens) + len(row.drafts)) // PAGE) - len(row.pages)
        if needed > 0:
            row.pages += self.pool.take(needed) or []
            del row.drafts[max(0, len(row.pages) * PAGE - len(row.tokens)) :]
        return len(row.pages) * PAGE >= len(row.tokens)

    def _send_back(self, row: Row) -> None:
        assert len(self.running) > 1 and not self.fixed, "a sequence that was admitted alone does not fit"
        self._leave(row)
        row.n_preempted += 1
        self.n_preempted += 1
        self.add(row)

    def _leave(self, row: Row) -> None:
        self.pool.release(row.pages)
        self.running.remove(row)
        self._slots.append(row.slot)
        row.pages, row.entries, row.drafts, row.held, row.target, row.slot = [], [], [], 0, 0, -1
