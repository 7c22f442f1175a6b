"""The scheduler as a state machine: sequences come, grow, are refused drafts and are cancelled in any order.

A page of the model remembers for each place which text led to it. So what a sequence believes to be held can be
compared with what was written: reuse, preemption and rollback are right or it shows.
"""

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from isoflop.model.pages import DUMP, PAGE
from isoflop.serving.blocks import PagePool
from isoflop.serving.scheduler import Row, Scheduler

BEGINNINGS = [[(at * 7 + kind) % 50 for at in range(400)] for kind in range(3)]


class Machine(RuleBasedStateMachine):
    @initialize(
        n_pages=st.integers(5, 16),
        max_rows=st.integers(1, 5),
        extra=st.integers(0, 150),
        chunk=st.sampled_from([0, 1, 7, 64]),
        lookahead=st.integers(0, 2),
        fixed=st.sampled_from([False, False, True]),
        seed=st.integers(0, 1000),
    )
    def begin(self, n_pages, max_rows, extra, chunk, lookahead, fixed, seed):
        self.pool = PagePool(n_pages, lookahead=lookahead)
        self.n_drafts = 3
        budget = max_rows + extra + (PAGE + max_rows * self.n_drafts if fixed else 0)
        chunk = PAGE if fixed else chunk
        self.scheduler = Scheduler(self.pool, max_rows=max_rows, budget=budget, chunk=chunk, fixed=fixed)
        self.generator = random.Random(seed)
        self.rows: dict[int, Row] = {}
        self.admitted: set[int] = set()
        self.written: dict[tuple[int, int], int] = {}
        self.final: dict[tuple[int, int], int] = {}
        self.texts: dict[tuple[int, int], int] = {}
        self.next_number = 0

    # what a sequence is made of

    def nodes(self, tokens, salt):
        """A number for each beginning of a text: equal texts have the same."""
        found, nodes = -1 - len(salt), []
        for token in tokens:
            found = self.texts.setdefault((found, token), len(self.texts) + 1)
            nodes.append(found)
        return nodes

    @staticmethod
    def said(row, n):
        """What the model says at the n-th place behind what is known."""
        return (row.number * 31 + (len(row.tokens) + n) * 17) % 50

    # what happens

    @rule(
        kind=st.integers(0, 2),
        n_prompt=st.integers(1, 330) | st.integers(60, 64),
        n_new=st.integers(1, 250),
        turned=st.booleans(),
        salt=st.sampled_from([b"", b"a"]),
    )
    def add(self, kind, n_prompt, n_new, turned, salt):
        tokens = BEGINNINGS[kind][:n_prompt]
        if turned:
            tokens = [*tokens[:-1], 49]
        if not self.scheduler.fits(n_prompt + n_new):
            assert -(-(n_prompt + n_new - 1) // PAGE) > self.pool.n_pages - 1
            return
        row = Row(self.next_number, tokens, n_prompt, n_prompt + n_new, salt)
        self.next_number += 1
        self.rows[row.number] = row
        self.scheduler.add(row)

    @precondition(lambda self: self.rows)
    @rule(n=st.integers(1, 70))
    def step(self, n):
        for _ in range(n):
            if self.rows:
                self.compute()

    @precondition(lambda self: self.rows)
    @rule(which=st.integers(0, 100))
    def cancel(self, which):
        number = sorted(self.rows)[which % len(self.rows)]
        row, before = self.rows.pop(number), self.pool.n_free
        own = sum(self.pool.holders(page) == 1 for page in row.pages)
        self.scheduler.remove(row)
        assert self.pool.n_free == before + own  # at once
        self.scheduler.remove(row)  # and never twice
        assert self.pool.n_free == before + own

    def compute(self):
        waiting = [row.number for row in self.scheduler.waiting]
        plan = self.scheduler.plan()
        works = [*plan.rows, *plan.chunks]
        assert works, "nobody is computed though somebody waits"
        assert sum(work.n for work in works) <= self.scheduler.budget
        assert len(self.scheduler.running) <= self.scheduler.max_rows
        assert {work.row.number for work in plan.rows} <= self.admitted | set(waiting)
        for work in works:
            if work.row.number not in self.admitted:  # nobody is overtaken
                assert all(number in self.admitted or number >= work.row.number for number in self.rows)
                self.admitted.add(work.row.number)
        for work in works:
            self.check_held(work)
        for work in works:
            self.write(work.row, work.start, [*work.row.tokens, *work.row.drafts], work.n)
        for work in works:
            self.draw(work)

    def check_held(self, work):
        row, ahead = work.row, self.pool.lookahead
        nodes = self.nodes(row.tokens, row.salt)
        for at in range(work.start):
            slot = row.pages[at // PAGE], at % PAGE
            assert self.written[slot] == nodes[at], (row.number, at)
            if at < row.n_reused:
                assert self.final[slot] == nodes[at + ahead], (row.number, at)

    def write(self, row, start, tokens, n):
        nodes = self.nodes(tokens, row.salt)
        for at in range(start, start + n):
            page = row.pages[at // PAGE]
            assert page != DUMP and not self.pool.is_shared(page) and self.pool.holders(page) == 1, (page, at)
            self.written[page, at % PAGE] = nodes[at]

    def draw(self, work):
        row, new = work.row, []
        if work.draws:
            drafts = list(row.drafts)
            while True:
                token = self.said(row, len(new))
                new.append(token)
                if len(row.tokens) + len(new) == row.limit or len(new) > len(drafts) or drafts[len(new) - 1] != token:
                    break
        self.scheduler.advance(work, new)
        assert row.held == len(row.tokens) - bool(new) or not row.is_decoding
        if len(row.tokens) == row.limit:
            if not self.pool.lookahead:
                self.scheduler.share(row)
            self.scheduler.remove(row)
            del self.rows[row.number]
            return
        ahead, nodes = self.pool.lookahead, self.nodes(row.tokens, row.salt)
        for at in range(row.held):
            if at + ahead < len(row.tokens):
                slot = row.pages[at // PAGE], at % PAGE
                if not self.pool.is_shared(slot[0]):
                    self.final[slot] = nodes[at + ahead]
                assert self.final[slot] == nodes[at + ahead]
        if new:
            right = [self.said(row, n) for n in range(self.n_drafts)]
            n_right = self.generator.randint(0, self.n_drafts)
            row.drafts = [*right[:n_right], *[50] * self.generator.randint(0, self.n_drafts - n_right)]
        self.scheduler.share(row)

    # what always holds

    @invariant()
    def pages_are_conserved(self):
        if not hasattr(self, "pool"):
            return
        holders: dict[int, int] = {}
        for row in self.rows.values():
            assert len(set(row.pages)) == len(row.pages)
            for page in row.pages:
                holders[page] = holders.get(page, 0) + 1
        assert all(self.pool.holders(page) == holders.get(page, 0) for page in range(self.pool.n_pages))
        assert self.pool.n_held == len(holders) and self.pool.n_free + self.pool.n_held == self.pool.n_pages - 1
        assert DUMP not in holders

    @invariant()
    def slots_are_held_once(self):
        if hasattr(self, "scheduler"):
            slots = [row.slot for row in self.scheduler.running]
            assert len(set(slots)) == len(slots) and all(0 <= slot < self.scheduler.max_rows for slot in slots)
            assert all(row.slot < 0 and not row.pages for row in self.scheduler.waiting)
            if self.scheduler.fixed:
                assert self.scheduler.n_preempted == 0

    def teardown(self):
        """Every admitted request ends, in a bounded number of steps."""
        if hasattr(self, "scheduler"):
            n_left = sum(row.limit for row in self.rows.values())
            bound = 50 + 4 * n_left * (1 + len(self.rows))
            while self.rows:
                self.compute()
                bound -= 1
                assert bound > 0, "somebody never ends"
            assert self.pool.n_held == 0 and not self.scheduler.running and not self.scheduler.waiting


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestScheduler = Machine.TestCase


def one(n_pages=40, **options):
    pool = PagePool(n_pages)
    return Scheduler(pool, **{"max_rows": 4, "budget": 64, **options})


def add(scheduler, number, n_prompt, n_new=10):
    row = Row(number, [number % 50] * n_prompt, n_prompt, n_prompt + n_new)
    scheduler.add(row)
    return row


def test_running_sequences_come_first_and_prompts_take_what_the_budget_leaves():
    scheduler = one()
    first = add(scheduler, 0, 30)
    (work,) = scheduler.plan().chunks
    assert (work.start, work.n, work.draws) == (0, 30, True)
    scheduler.advance(work, [1])
    first.drafts = [1, 2]
    second, third = add(scheduler, 1, 50), add(scheduler, 2, 50)
    plan = scheduler.plan()
    assert [(w.row, w.n, w.n_drafts) for w in plan.rows] == [(first, 3, 2)]
    assert [(w.row, w.n, w.draws) for w in plan.chunks] == [(second, 50, True), (third, 11, False)]


def test_drafts_never_reach_beyond_the_end():
    scheduler = one()
    row = add(scheduler, 0, 5, n_new=3)
    scheduler.advance(scheduler.plan().chunks[0], [1])
    row.drafts = [1, 2, 3, 4]
    (work,) = scheduler.plan().rows
    assert work.n_drafts == 1  # one draft and the draw behind it are the last two tokens


def test_the_youngest_goes_back_when_pages_run_out_and_comes_again_before_younger_ones():
    scheduler = one(n_pages=5)
    old, young = add(scheduler, 0, 64, n_new=100), add(scheduler, 1, 64, n_new=60)
    for _ in range(3):
        for work in scheduler.plan().chunks:
            scheduler.advance(work, [1] if work.draws else [])
    assert {row.number for row in scheduler.running} == {0, 1}
    late = add(scheduler, 2, 10)
    while not young.n_preempted:
        plan = scheduler.plan()
        for work in (*plan.rows, *plan.chunks):
            scheduler.advance(work, [1] if work.draws else [])
        assert old.n_preempted == 0
    assert scheduler.waiting[0] is young and scheduler.waiting[-1] is late
