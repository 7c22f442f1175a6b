"""Pages are found again only by what begins the same, for the same owner, with the same weights; none is ever lost."""

import pytest

from isoflop.model.pages import PAGE
from isoflop.serving import blocks
from isoflop.serving.blocks import PagePool

TEXT = list(range(1000, 1000 + 5 * PAGE))


def keep(pool, tokens, salt=b""):
    """A sequence that computes all of its pages, shares the full ones and ends; returns its pages."""
    found = pool.match(tokens, salt)
    pages = pool.hold(found) + pool.take(-(-len(tokens) // PAGE) - len(found))
    entries = list(found)
    while (len(entries) + 1) * PAGE + pool.lookahead <= len(tokens):
        index = len(entries)
        entry = pool.share(pages[index], entries[-1] if entries else None, pool.ids_of(tokens, index), salt)
        if entry is None:
            break
        entries.append(entry)
    pool.release(pages)
    return pages


def found(pool, tokens, salt=b""):
    return [entry.page for entry in pool.match(tokens, salt)]


def test_full_pages_of_the_same_beginning_are_found_in_order():
    pool = PagePool(20)
    pages = keep(pool, TEXT[:200])
    assert found(pool, TEXT[:250]) == pages[:3]
    assert found(pool, [*TEXT[:100], 0, *TEXT[101:200]]) == pages[:1]
    assert found(pool, [0, *TEXT[1:200]]) == []
    assert pool.n_free == 19


def test_at_least_one_token_is_left_to_compute():
    pool = PagePool(20)
    pages = keep(pool, TEXT[:128])
    assert found(pool, TEXT[:128]) == pages[:1]
    assert found(pool, TEXT[:129]) == pages[:2]


def test_pages_that_differ_in_any_token_are_both_found():
    for place in (0, 1, 31, 62, 63):
        pool = PagePool(20)
        other = [*TEXT[:place], 7, *TEXT[place + 1 : 70]]
        first, second = keep(pool, TEXT[:70]), keep(pool, other)
        assert found(pool, TEXT[:70]) == first[:1] and found(pool, other) == second[:1], place


def test_only_the_same_salt_finds_a_page():
    pool = PagePool(20)
    mine = keep(pool, TEXT[:70], b"mine")
    assert found(pool, TEXT[:70], b"yours") == [] == found(pool, TEXT[:70])
    assert found(pool, TEXT[:70], b"mine") == mine[:1]


def test_equal_hashes_of_different_content_are_not_believed(monkeypatch):
    monkeypatch.setattr(blocks, "page_key", lambda *_: b"always the same")
    pool = PagePool(20)
    pages = keep(pool, TEXT[:70])
    assert found(pool, TEXT[:70]) == pages[:1]
    assert found(pool, [0, *TEXT[1:70]]) == [] == found(pool, TEXT[:70], b"salt")
    keep(pool, [0, *TEXT[1:200]])
    assert found(pool, TEXT[:200]) == pages[:1] and pool.n_free == 19


def test_a_page_behind_another_beginning_is_another_page():
    pool = PagePool(20)
    first, second = keep(pool, [*TEXT[:64], *TEXT[128:200]]), keep(pool, [*TEXT[64:128], *TEXT[128:200]])
    assert found(pool, [*TEXT[:64], *TEXT[128:200]]) == first[:2]
    assert found(pool, [*TEXT[64:128], *TEXT[128:200]]) == second[:2] and first[1] != second[1]


def test_new_weights_make_all_pages_unknown():
    pool = PagePool(20)
    keep(pool, TEXT[:200])
    pool.forget_all()
    assert found(pool, TEXT[:200]) == [] and pool.n_free == 19
    again = keep(pool, TEXT[:200])
    assert found(pool, TEXT[:200]) == again[:3]


def test_with_prediction_modules_the_tokens_after_a_page_belong_to_it():
    pool = PagePool(20, lookahead=2)
    pages = keep(pool, TEXT[:66])
    assert found(pool, TEXT[:66]) == pages[:1]
    assert found(pool, TEXT[:65]) == []  # what the modules hold of the page's end is not known to fit
    assert found(pool, [*TEXT[:65], 0, 0]) == [] == found(pool, [*TEXT[:64], 0, TEXT[65]])


def test_the_oldest_kept_pages_go_first_and_ends_before_beginnings():
    pool = PagePool(9)
    first, second = keep(pool, TEXT[:256]), keep(pool, [0, *TEXT[1:256]])
    taken = pool.take(2)
    assert taken == [first[3], first[2]]
    assert found(pool, TEXT[:300]) == first[:2] and found(pool, [0, *TEXT[1:300]]) == second[:4]
    assert pool.take(7) is None and pool.n_held == 2


def test_a_shared_page_is_free_only_when_its_last_reader_leaves():
    pool = PagePool(5)
    keep(pool, TEXT[:70])
    entries = pool.match(TEXT[:70], b"")
    one, two = pool.hold(entries), pool.hold(entries)
    assert one == two and pool.holders(one[0]) == 2 and pool.n_free == 3
    pool.release(one)
    assert pool.n_free == 3
    pool.release(two)
    assert pool.n_free == 4
    with pytest.raises(AssertionError, match="given back by nobody"):
        pool.release(two)
