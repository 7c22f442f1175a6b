import numpy as np
import pytest

from isoflop.corpus.synthetic import Facts, Markov, Unigram, documents, entropy_bits
from isoflop.errors import DataError


def _conditional_entropy_bits(symbols: np.ndarray, order: int, n_symbols: int) -> float:
    """Plug-in estimate of the entropy of a symbol given the `order` before it."""
    context = np.zeros(len(symbols) - order, dtype=np.int64)
    for offset in range(order):
        context = context * n_symbols + symbols[offset : len(symbols) - order + offset]
    counts = np.zeros((n_symbols**order, n_symbols))
    np.add.at(counts, (context, symbols[order:]), 1)
    totals = counts.sum(axis=1, keepdims=True)
    rows = counts / np.maximum(totals, 1)
    return float((totals[:, 0] / totals.sum()) @ entropy_bits(rows))


def test_unigram_entropy_is_the_known_one() -> None:
    assert Unigram(np.array([1, 1, 2])).entropy_bits == pytest.approx(1.5)
    source = Unigram(np.array([0.5, 0.25, 0.125, 0.125]))
    sample = source.sample(200_000, np.random.default_rng(1))
    assert _conditional_entropy_bits(sample, 0, 4) == pytest.approx(source.entropy_bits, abs=0.01)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_markov_entropy_rate_is_what_a_sample_has(order: int) -> None:
    generator = np.random.default_rng(2)
    source = Markov.random(order, 4, generator)
    sample = source.sample(120_000, generator)
    assert _conditional_entropy_bits(sample, order, 4) == pytest.approx(source.entropy_bits, abs=0.02)
    if order:  # a shorter context can't know as much
        assert _conditional_entropy_bits(sample, order - 1, 4) > source.entropy_bits + 0.05


def test_two_state_chain_has_its_textbook_rate() -> None:
    source = Markov(np.array([[0.9, 0.1], [0.5, 0.5]]), 1)
    assert source.stationary == pytest.approx([5 / 6, 1 / 6])
    expected = 5 / 6 * entropy_bits(np.array([0.9, 0.1])) + 1 / 6
    assert source.entropy_bits == pytest.approx(float(expected))


def test_loss_on_facts_falls_as_the_stated_power_law() -> None:
    source = Facts(200_000, 1.5, np.random.default_rng(3))
    seen = np.logspace(2, 4, 9)
    slope = np.polyfit(np.log(seen), np.log(source.loss_after_bits(seen) - source.entropy_bits), 1)[0]
    assert slope == pytest.approx(-source.exponent, abs=0.02)
    assert source.loss_after_bits(0.0) == pytest.approx(source.entropy_bits + 1.0)
    assert source.loss_of_size_bits(200_000) == source.entropy_bits


def test_learner_that_remembers_facts_has_the_stated_loss() -> None:
    generator = np.random.default_rng(4)
    source = Facts(1000, 1.4, generator)
    new = []
    for _ in range(300):
        sample = source.sample(201, generator)
        new.append(sample[200] not in set(sample[:200]))  # a new fact costs one bit, a known one nothing
    expected = float(source.loss_after_bits(200.0)) - source.entropy_bits
    assert np.mean(new) == pytest.approx(expected, abs=4 * np.sqrt(expected / 300))


def test_text_is_ascii_of_the_stated_width_and_depends_on_the_generator_alone() -> None:
    generator = np.random.default_rng(5)
    for source in (Unigram(np.ones(94)), Markov.random(1, 5, generator), Facts(300, 1.2, generator)):
        first, second = (list(documents(source, 2, 50, np.random.default_rng(6))) for _ in range(2))
        assert first == second
        assert all(len(item.text) == 50 * source.bytes_per_symbol and item.text.isascii() for item in first)
        assert first[0].text != first[1].text


def test_impossible_sources_are_refused() -> None:
    with pytest.raises(DataError, match="must be a list of numbers >= 0"):
        Unigram(np.array([-1.0, 2.0]))
    with pytest.raises(DataError, match="do not fit into printable ASCII"):
        Unigram(np.ones(200))
    with pytest.raises(DataError, match="lower one of them"):
        Markov.random(30, 4, np.random.default_rng(0))
    with pytest.raises(DataError, match="needs 4"):
        Markov(np.ones((3, 2)), 2)
    with pytest.raises(DataError, match=r"exponent = 0\.5 above 1"):
        Facts(10, 0.5, np.random.default_rng(0))
