"""Eight faults that engines have had, planted one at a time: each turns a claim of this folder red."""

import pytest
import test_blocks
import test_exactness
import test_sampling
import test_text

from isoflop.serving import blocks, engine
from isoflop.serving.blocks import Entry, PagePool
from isoflop.serving.runner import Runner
from isoflop.serving.scheduler import Scheduler
from isoflop.serving.text import TextStream


def drop_the_salt(patch):
    real = blocks.page_key
    patch.setattr(blocks, "page_key", lambda parent, ids, salt, version: real(parent, ids, b"", version))
    patch.setattr(Entry, "holds", lambda self, parent, ids, salt: self.parent is parent and self.ids == ids)


def hash_without_the_last_token(patch):
    real = blocks.page_key
    patch.setattr(blocks, "page_key", lambda parent, ids, salt, version: real(parent, ids[:-8], salt, version))


def share_the_last_page(patch):
    real = PagePool.match
    patch.setattr(PagePool, "match", lambda self, tokens, salt: real(self, [*tokens, -1], salt))


def skip_the_rollback(patch):
    """Refused drafts count as held: what is read next lies behind them."""
    real = Scheduler.advance

    def advance(self, work, new_tokens):
        n_refused = work.n_drafts - max(0, len(new_tokens) - 1)
        real(self, work, new_tokens)
        work.row.held += n_refused

    patch.setattr(Scheduler, "advance", advance)


def swap_two_seeds(patch):
    real = engine.draw

    def draw(logits_MV, places):
        if len(places) > 1:
            first, second = places[0], places[1]
            places = [first._replace(seed=second.seed), second._replace(seed=first.seed), *places[2:]]
        return real(logits_MV, places)

    patch.setattr(engine, "draw", draw)


def mtp_position_off_by_one(patch):
    real = Runner._run_mtp

    def run(self, depth, hidden_ND, tokens, spans):
        moved = [span._replace(start=span.start - 1) for span in spans]
        return real(self, depth, hidden_ND, tokens, moved)

    patch.setattr(Runner, "_run_mtp", run)


def forget_the_held_text(patch):
    patch.setattr(TextStream, "finish", lambda self: "")


def compare_hashes_only(patch):
    patch.setattr(Entry, "holds", lambda self, parent, ids, salt: True)


def seeded_text(patch):
    test_sampling.test_seeded_text_is_the_same_alone_batched_preempted_and_drafted("dense", patch)


def adversarial_drafts(patch):
    test_exactness.test_greedy_equals_the_full_forward_with_drafts_from("dense", "adversary", patch)


MUTANTS = {
    drop_the_salt: lambda patch: test_blocks.test_only_the_same_salt_finds_a_page(),
    hash_without_the_last_token: lambda patch: test_blocks.test_pages_that_differ_in_any_token_are_both_found(),
    share_the_last_page: lambda patch: test_blocks.test_at_least_one_token_is_left_to_compute(),
    skip_the_rollback: adversarial_drafts,
    swap_two_seeds: seeded_text,
    mtp_position_off_by_one: lambda _: test_exactness.test_drafts_of_modules_are_those_of_the_whole_sequence({}),
    forget_the_held_text: lambda _: test_text.test_text_held_back_for_a_stop_that_does_not_come_is_given_at_the_end(),
    compare_hashes_only: test_blocks.test_equal_hashes_of_different_content_are_not_believed,
}


@pytest.mark.parametrize("plant", MUTANTS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_turns_a_claim_red(plant, monkeypatch):
    claim = MUTANTS[plant]
    with monkeypatch.context() as patch:
        claim(patch)  # green before
    with monkeypatch.context() as patch:
        plant(patch)
        with pytest.raises((AssertionError, IndexError)):
            claim(patch)
