"""Sources of known entropy: they run anywhere and give fits, tokenizers and models a truth to hit.

    Unigram    independent symbols; the entropy of one symbol
    Markov     order k over a small alphabet; the entropy rate is exact
    Facts      a stream of (fact number, its bit): loss falls as a power law in the number of symbols seen

Each source has `entropy_bits` (the floor, bits per symbol), `sample(n, generator)` (integers), and `text(symbols)`
(one ASCII rendering that can be read back). Units: bits per symbol; bits per byte = bits per symbol / bytes per symbol.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from isoflop.corpus.document import Document
from isoflop.errors import DataError

MAX_ORDER_ROWS = 1 << 22  # assumption: contexts of a Markov source that fit in memory easily


class Source(Protocol):
    """What every source of known entropy has."""

    entropy_bits: float
    """Entropy rate, bits per symbol: no model can have less loss in the long run."""
    bytes_per_symbol: int
    """Bytes of one symbol in `text`."""

    def sample(self, n: int, generator: np.random.Generator) -> np.ndarray:
        """`n` symbols, int64."""
        ...

    def text(self, symbols: np.ndarray) -> str:
        """Symbols as ASCII."""
        ...


class Unigram:
    """Independent symbols with the given probabilities."""

    bytes_per_symbol = 1

    def __init__(self, probabilities: np.ndarray):
        self.probabilities = _distribution(probabilities)
        _require_alphabet(len(self.probabilities))
        self.entropy_bits = float(entropy_bits(self.probabilities))

    def sample(self, n: int, generator: np.random.Generator) -> np.ndarray:
        """`n` symbols, int64."""
        return generator.choice(len(self.probabilities), size=n, p=self.probabilities).astype(np.int64)

    def text(self, symbols: np.ndarray) -> str:
        """One character per symbol."""
        return _one_character_each(symbols)


class Markov:
    """A source of order k: the next symbol depends on the k before it.

    `table` has a row of probabilities for each context, (alphabet ** order, alphabet); the context's number is that
    of its symbols as digits, the oldest first. `Markov.random` draws a table.
    """

    bytes_per_symbol = 1

    def __init__(self, table: np.ndarray, order: int):
        self.table = np.apply_along_axis(_distribution, 1, np.asarray(table, dtype=np.float64))
        self.order, self.n_symbols = order, self.table.shape[1]
        _require_alphabet(self.n_symbols)
        if self.table.shape[0] != self.n_symbols**order:
            raise DataError(
                f"table has {self.table.shape[0]} rows; order {order} over {self.n_symbols} symbols needs "
                f"{self.n_symbols**order}"
            )
        self.stationary = self._stationary()
        self.entropy_bits = float(self.stationary @ entropy_bits(self.table))

    @classmethod
    def random(
        cls, order: int, n_symbols: int, generator: np.random.Generator, *, concentration: float = 0.3
    ) -> "Markov":
        """Each row drawn from a symmetric Dirichlet distribution; a small `concentration` makes it predictable."""
        if n_symbols**order > MAX_ORDER_ROWS:
            raise DataError(
                f"order = {order} over {n_symbols} symbols has {n_symbols**order} contexts; "
                f"lower one of them: at most {MAX_ORDER_ROWS} contexts"
            )
        rows = generator.gamma(concentration, size=(n_symbols**order, n_symbols)) + 1e-6  # keeps the chain ergodic
        return cls(rows / rows.sum(axis=1, keepdims=True), order)

    def sample(self, n: int, generator: np.random.Generator) -> np.ndarray:
        """`n` symbols, int64, starting in the stationary distribution."""
        cumulative = np.cumsum(self.table, axis=1)
        uniform = generator.random(n)
        context = int(generator.choice(len(self.stationary), p=self.stationary))
        symbols = np.empty(n, dtype=np.int64)
        keep = self.n_symbols ** (self.order - 1) if self.order else 1
        for index in range(n):
            symbol = min(int(np.searchsorted(cumulative[context], uniform[index])), self.n_symbols - 1)
            symbols[index] = symbol
            context = (context % keep) * self.n_symbols + symbol if self.order else 0
        return symbols

    def text(self, symbols: np.ndarray) -> str:
        """One character per symbol."""
        return _one_character_each(symbols)

    def _stationary(self) -> np.ndarray:
        n_contexts = len(self.table)
        if self.order == 0:
            return np.ones(1)
        contexts = np.arange(n_contexts)
        following = (contexts[:, None] % (n_contexts // self.n_symbols)) * self.n_symbols + np.arange(self.n_symbols)
        share = np.full(n_contexts, 1.0 / n_contexts)
        for _ in range(20_000):
            moved = np.bincount(following.ravel(), (share[:, None] * self.table).ravel(), minlength=n_contexts)
            # the average of two steps converges for periodic chains too, to the same distribution
            moved = 0.5 * (moved + share)
            if np.abs(moved - share).sum() < 1e-13:
                break
            share = moved
        return share / share.sum()


class Facts:
    """Symbols (k, z_k): the number k of a fact, drawn from a Zipf law, and its bit, which is the same every time.

    A learner that has seen n symbols knows the bits of the facts among them; the next symbol costs the entropy of k
    plus one bit if its fact is new. So the loss after n symbols is exactly

        entropy_bits + sum_k p_k (1 - p_k)^n,    p_k proportional to k^-exponent,

    which falls as n^-(1 - 1/exponent) until the facts run out: a data scaling law with a known exponent and floor. A
    learner that can hold only the m most frequent facts has entropy_bits + sum_{k > m} p_k: the same for size.
    Source: Debowski 2011, "On the vocabulary of grammar-based codes" (Santa Fe process); the sums are ours.
    """

    def __init__(self, n_facts: int, exponent: float, generator: np.random.Generator):
        if n_facts < 2 or exponent <= 1.0:
            raise DataError(
                f"n_facts = {n_facts} must be at least 2 and exponent = {exponent} above 1; for example 4096 and 1.5"
            )
        self.probabilities = _distribution(np.arange(1, n_facts + 1, dtype=np.float64) ** -exponent)
        self.bits = generator.integers(0, 2, n_facts)
        self.exponent = 1.0 - 1.0 / exponent
        """Of the power law in the number of symbols seen."""
        self.entropy_bits = float(entropy_bits(self.probabilities))
        self.bytes_per_symbol = len(_digits(n_facts - 1, 1)) + 2

    def loss_after_bits(self, n_seen: np.ndarray | float) -> np.ndarray:
        """Expected loss of the next symbol for an ideal learner of `n_seen` symbols, bits."""
        seen = np.asarray(n_seen, dtype=np.float64)[..., None]
        return self.entropy_bits + (self.probabilities * np.exp(seen * np.log1p(-self.probabilities))).sum(axis=-1)

    def loss_of_size_bits(self, n_known: int) -> float:
        """Loss of a learner that holds the `n_known` most frequent facts, bits."""
        return self.entropy_bits + float(self.probabilities[n_known:].sum())

    def sample(self, n: int, generator: np.random.Generator) -> np.ndarray:
        """`n` symbols 2 k + z_k, int64."""
        facts = generator.choice(len(self.probabilities), size=n, p=self.probabilities)
        return 2 * facts + self.bits[facts]

    def text(self, symbols: np.ndarray) -> str:
        """Words of equal length: the fact in letters, then + or -, then a space."""
        width = self.bytes_per_symbol - 2
        return "".join(f"{_digits(int(s) // 2, width)}{'+' if s % 2 else '-'} " for s in symbols)


def entropy_bits(probabilities: np.ndarray) -> np.ndarray:
    """Entropy along the last axis, bits."""
    logs = np.log2(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    return -(probabilities * logs).sum(axis=-1)


def documents(
    source: Source, n_documents: int, n_symbols: int, generator: np.random.Generator, *, domain: str = "synthetic"
) -> Iterator[Document]:
    """Documents of `n_symbols` each, as a corpus reader would give them."""
    for index in range(n_documents):
        name = f"{domain}/{index:06d}"
        yield Document(name, source.text(source.sample(n_symbols, generator)), domain, name, "none needed")


def _distribution(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not np.all(values >= 0) or not 0 < values.sum() < np.inf:
        raise DataError(f"probabilities {values!r} must be a list of numbers >= 0 with a positive sum")
    return values / values.sum()


def _require_alphabet(n_symbols: int) -> None:
    if n_symbols > 94:
        raise DataError(f"{n_symbols} symbols do not fit into printable ASCII; use at most 94")


def _one_character_each(symbols: np.ndarray) -> str:
    return (symbols + ord("!")).astype(np.uint8).tobytes().decode("ascii")


def _digits(number: int, width: int) -> str:
    letters = ""
    while number or len(letters) < width:
        number, digit = divmod(number, 26)
        letters = chr(ord("a") + digit) + letters
    return letters
