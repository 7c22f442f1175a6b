import math

import numpy as np
import pytest

from isoflop.errors import DataError, RecipeError
from isoflop.tokens.batches import Batches
from isoflop.tokens.shards import TokenSet


def _batches(token_set: TokenSet, **options: object) -> Batches:
    return Batches(token_set, **{"seq_len": 16, "batch_sequences": 8, "seed": 3, **options})  # type: ignore[arg-type]


def test_batch_depends_on_seed_and_step_alone(token_set: TokenSet) -> None:
    first, second = _batches(token_set), _batches(token_set)
    second.batch(17)  # what was asked before does not matter
    for step in (0, 5, 1000):
        assert np.array_equal(first.batch(step), second.batch(step))
    assert first.batch(0).shape == (8, 17)
    assert first.batch(0).dtype == np.int64
    assert not np.array_equal(first.batch(0), _batches(token_set, seed=4).batch(0))


@pytest.mark.parametrize("weights", [None, {"prose": 3.0, "code": 1.0}])
def test_ranks_together_are_the_global_batch(token_set: TokenSet, weights: dict[str, float] | None) -> None:
    batches = _batches(token_set, weights=weights)
    for world_size in (2, 4, 8):
        parts = [batches.batch(7, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert np.array_equal(np.concatenate(parts), batches.batch(7))


def test_larger_batches_see_the_same_sequences_in_the_same_order(token_set: TokenSet) -> None:
    small, large = _batches(token_set), _batches(token_set, batch_sequences=24)
    rows = np.concatenate([small.batch(step) for step in range(6)])
    assert np.array_equal(rows, np.concatenate([large.batch(0), large.batch(1)]))


def test_one_epoch_has_every_window_once_and_the_next_another_order(token_set: TokenSet) -> None:
    batches = _batches(token_set, batch_sequences=1)
    n = batches.n_unique_tokens // 16
    windows = {
        shard[start : start + 17].tobytes()
        for name in token_set.domains("train")
        for shard in [token_set.tokens("train", name).astype(np.int64)]
        for start in range(0, len(shard) - 16, 16)
    }
    first, second = ([batches.batch(epoch * n + step).tobytes() for step in range(n)] for epoch in range(2))
    assert set(first) == set(second) == windows
    assert first != second
    assert batches.epochs(2 * batches.n_unique_tokens) == pytest.approx(2.0)


def test_weights_set_the_share_of_each_domain(token_set: TokenSet) -> None:
    batches = _batches(token_set, batch_sequences=4096, weights={"prose": 3.0, "code": 1.0})
    pools, _ = batches._mixture.draws(np.arange(4096))  # type: ignore[union-attr]
    assert [int((pools == index).sum()) for index in range(2)] == [1024, 3072]
    one_domain = _batches(token_set, weights={"prose": 1.0, "code": 0.0})
    prose = token_set.tokens("train", "prose").astype(np.int64)
    starts = {prose[start : start + 17].tobytes() for start in range(0, len(prose) - 16, 16)}
    assert all(row.tobytes() in starts for row in one_domain.batch(0))
    epochs = batches.epochs_by_domain(batches.n_unique_tokens)
    assert epochs["prose"] > 1.0 > epochs["code"]


def test_a_curriculum_changes_the_shares_at_its_place_and_repeats_nothing_early(token_set: TokenSet) -> None:
    stages = [(0, {"prose": 1.0}), (80, {"prose": 0.25, "code": 0.75})]
    batches = _batches(token_set, curriculum=stages, batch_sequences=40)
    prose = _batches(token_set, weights={"prose": 1.0}, batch_sequences=40)
    for step in (0, 1):
        assert np.array_equal(batches.batch(step), prose.batch(step))
    rows = {tuple(row) for step in range(4) for row in batches.batch(step).tolist()}
    assert len(rows) == 160  # no window twice while there are new ones
    epochs = batches.epochs_by_domain(160 * 16)
    windows = {name: (len(token_set.tokens("train", name)) - 1) // 16 for name in ("prose", "code")}
    seen = {name: round(epochs[name] * windows[name]) for name in windows}
    assert seen["prose"] + seen["code"] == 160 and 40 <= seen["code"] <= 75


def test_validation_counts_every_byte_once(token_set: TokenSet) -> None:
    batches = _batches(token_set, seq_len=50)
    tokenizer = token_set.tokenizer
    for domain in token_set.domains("valid"):
        windows = list(batches.valid_windows(domain, batch_sequences=4))
        shard = token_set.tokens("valid", domain)
        targets = np.concatenate([window.tokens[:, 1:][window.counted] for window in windows])
        assert np.array_equal(targets, shard[1:][shard[1:] != tokenizer.bos_id])
        assert sum(window.n_bytes for window in windows) == token_set.shard("valid", domain).n_bytes


def test_uniform_model_has_its_known_bits_per_byte(token_set: TokenSet) -> None:
    nats = bits = 0.0
    for window in _batches(token_set).valid_windows("prose"):
        nats += window.counted.sum() * math.log(token_set.vocab_size)
        bits += math.log(2) * window.n_bytes
    shard = token_set.shard("valid", "prose")
    expected = math.log2(token_set.vocab_size) * (shard.n_tokens - shard.n_documents) / shard.n_bytes
    assert nats / bits == pytest.approx(expected, rel=1e-12)


def test_validation_limit_spreads_over_the_shard(token_set: TokenSet) -> None:
    windows = list(_batches(token_set).valid_windows("prose", 160))
    shard = token_set.tokens("valid", "prose").astype(np.int64)
    assert sum(len(window.tokens) for window in windows) == 10
    starts = {shard[start : start + 17].tobytes(): start for start in range(0, len(shard), 16)}
    places = [starts[row.tobytes()] for row in windows[0].tokens]
    assert places == sorted(places)
    assert places[-1] > 0.8 * len(shard)


def test_bad_requests_say_what_to_do(token_set: TokenSet) -> None:
    with pytest.raises(DataError, match=r"model\.seq_len = 1000000 needs 1000001 tokens"):
        _batches(token_set, seq_len=1_000_000)
    with pytest.raises(RecipeError, match=r"data\.weights\.law: no such domain; the tokens have: code, prose"):
        _batches(token_set, weights={"law": 1.0})
    with pytest.raises(RecipeError, match="8 sequences must divide by world_size = 3; nearest: 9"):
        _batches(token_set).batch(0, world_size=3)
